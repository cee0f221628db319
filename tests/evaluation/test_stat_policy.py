from __future__ import annotations

import json
import math

import pytest

from evpack.catalog.policy import Policy, resolve_policy
from evpack.errors import BadInput, EvidenceError
from evpack.files import canonical_json


@pytest.mark.parametrize("tier", ["balanced", "conservative", "aggressive"])
@pytest.mark.parametrize("profile", ["dev", "ci", "ci_cpu", "release", "small"])
def test_every_combination_resolves_and_survives_a_round_trip(tier, profile) -> None:
    policy = resolve_policy(tier, profile)
    again = Policy.parse(canonical_json(policy.to_json()))
    assert again == policy
    assert again.digest() == policy.digest()
    assert all(leaf.origin for leaf in policy.thresholds.values())


@pytest.mark.parametrize(
    ("tier", "limit", "tokens", "caps"),
    [("balanced", 1.10, 50000, 5), ("conservative", 1.05, 20000, 3), ("aggressive", 1.20, 50000, 8)],
)
def test_tier_values_of_the_reference(tier, limit, tokens, caps) -> None:
    policy = resolve_policy(tier, "dev")
    assert policy.acceptance == (0.95, limit)
    assert policy.drift_band == (0.95, 1.05)
    assert policy.number("metrics.pm_ratio.min_tokens") == tokens
    assert policy.number("spectral.max_caps") == caps
    assert policy.values()["spectral"]["family_caps"]["ffn"]["kappa"] == 3.849


def test_profile_small_says_what_it_is_worth() -> None:
    policy = resolve_policy("balanced", "small")
    assert policy.number("metrics.pm_ratio.min_tokens") == 4000
    assert (policy.number("metrics.coverage.preview"), policy.number("metrics.coverage.final")) == (16, 16)
    assert policy.flag("metrics.unstable")
    assert policy.evidence_cap == "medium"
    assert policy.thresholds["metrics.unstable"].origin.startswith("profile small: ")


def test_layers_override_from_tier_to_profile_to_configuration() -> None:
    assert resolve_policy("balanced", "ci_cpu").acceptance == (0.95, 1.15)
    given = resolve_policy("balanced", "ci_cpu", {"acceptance_range": {"max": 1.3}, "drift_band": [0.9, 1.2]})
    assert given.acceptance == (0.95, 1.3)
    assert given.drift_band == (0.9, 1.2)
    assert given.thresholds["primary_metric.acceptance_range.max"].origin == "override: configuration"
    assert given.digest() != resolve_policy("balanced", "ci_cpu").digest()


def test_a_configuration_sets_limits_of_guards() -> None:
    given = {"guards.spectral.max_spectral_norm": 40, "guards.variance.monitor_only": False}
    policy = resolve_policy("balanced", "ci", given)
    assert policy.number("spectral.max_spectral_norm") == 40
    assert not policy.flag("variance.monitor_only")
    assert policy == Policy.parse(canonical_json(policy.to_json()))


def test_environment_reaches_no_threshold(monkeypatch) -> None:
    before = resolve_policy("balanced", "ci")
    monkeypatch.setenv("INVARLOCK_PM_ACCEPTANCE_MAX", "9")
    monkeypatch.setenv("PACK_PM_ACCEPTANCE_MAX", "9")
    assert resolve_policy("balanced", "ci") == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("lenient", "ci"), "unknown tier 'lenient'"),
        (("balanced", "demo"), "unknown profile 'demo'"),
        (("balanced", "ci", {"ratio_limit": 2}), "ratio_limit"),
        (("balanced", "ci", {"acceptance_range": 2}), "acceptance_range"),
        (("balanced", "ci", {"acceptance_range": {}}), "acceptance_range"),
        (("balanced", "ci", {"acceptance_range": {"max": "1.2"}}), "'1.2'"),
        (("balanced", "ci", {"acceptance_range": {"max": True}}), "True"),
        (("balanced", "ci", {"acceptance_range": {"max": -1}}), "not positive"),
        (("balanced", "ci", {"acceptance_range": [1.2, 1.1]}), "empty"),
        (("balanced", "ci", {"drift_band": [0.9, math.inf]}), "finite"),
        (("balanced", "ci", {"drift_band": [1, 2, 3]}), "drift_band"),
        (("balanced", "ci", {"guards.spectral.scope": "ffn"}), "guards.spectral.scope"),
        (("balanced", "ci", {"guards.spectral.max_caps": 2.5}), "max_caps is 2.5"),
        (("balanced", "ci", {"guards.spectral.max_caps": True}), "max_caps is True, not a number"),
        (("balanced", "ci", {"guards.spectral.ratio_cap": -0.1}), "ratio_cap is -0.1"),
        (("balanced", "ci", {"guards.rmt.epsilon": math.nan}), "epsilon is nan"),
        (("balanced", "ci", {"guards.rmt.epsilon": None}), "epsilon is None"),
        (("balanced", "ci", {"guards.rmt.windows.count": 0}), "not positive"),
        (("balanced", "ci", {"guards.rmt.windows.count": 10**400}), "beyond"),
        (("balanced", "ci", {"guards.variance.monitor_only": 0}), "monitor_only is 0, not a switch"),
    ],
)
def test_bad_policy_input_names_the_value(arguments, named) -> None:
    with pytest.raises(BadInput, match=named) as caught:
        resolve_policy(*arguments)
    assert caught.value.mend


def _damaged(change):
    document = resolve_policy("balanced", "small").to_json()
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("tier"), "tier"),
        (lambda d: d.pop("schema"), "schema"),
        (lambda d: d.update(schema="x"), "schema"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["thresholds"].pop("spectral.max_caps"), "spectral.max_caps"),
        (lambda d: d["thresholds"].update(more={"value": 1, "origin": "x"}), "more"),
        (lambda d: d["thresholds"]["spectral.max_caps"].update(value="5"), "spectral.max_caps"),
        (lambda d: d["thresholds"]["metrics.unstable"].update(value=1), "metrics.unstable"),
        (lambda d: d["thresholds"]["metrics.pm_ratio.ratio_limit_base"].update(value=0), "ratio_limit_base"),
        (lambda d: d["thresholds"]["metrics.pm_tail.quantile"].update(value=3), "quantile"),
        (lambda d: d["thresholds"]["verdict.signal_kinds"].update(value=["mood"]), "mood"),
        (lambda d: d["thresholds"]["evidence.max_level"].update(value="top"), "top"),
        (lambda d: d["thresholds"]["spectral.max_caps"].update(origin=""), "origin"),
        (lambda d: d["thresholds"]["primary_metric.drift_band.min"].update(value=2.0), "drift band"),
        (lambda d: d["thresholds"]["primary_metric.drift_band.max"].update(value=10**400), "drift_band.max is 1000"),
        (lambda d: d["thresholds"]["metrics.pm_tail.quantile"].update(value=-(10**400)), "quantile is -1000"),
    ],
)
def test_a_damaged_policy_is_refused(change, named) -> None:
    with pytest.raises(EvidenceError, match=named):
        Policy.parse(_damaged(change))


def test_null_is_kept_for_limits_nobody_set() -> None:
    assert resolve_policy("balanced", "ci").values()["spectral"]["max_spectral_norm"] is None


@pytest.mark.parametrize(
    ("tier", "profile", "draws"),
    [("balanced", "small", 2000), ("conservative", "ci", 1500), ("balanced", "release", 3200)],
)
def test_the_bootstrap_draws_what_the_profile_says_and_at_least_what_the_tier_asks(
    tier: str, profile: str, draws: int
) -> None:
    assert resolve_policy(tier, profile).replicates == draws

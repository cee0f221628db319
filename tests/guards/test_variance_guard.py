"""Scales from variances, their limits, the gates on a trial, scales on a model, and the probes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.policy import Leaf, Policy, resolve_policy
from evpack.catalog.scenarios import ErrorGeneration, ProbeDetector, Requirements, Scenario
from evpack.errors import BrokenContract, EvidenceError
from evpack.guards import probes, variance
from evpack.guards.chain import could_not_run, guarded, sampled_windows, variance_block
from evpack.guards.hooks_records import ActivationRecords, ModuleActivations
from evpack.guards.variance_scales import scaled

WINDOWS = 8
DOWN = [f"model.layers.{i}.mlp.down_proj" for i in range(3)]
OUT = "model.layers.0.self_attn.o_proj"


def policy(tier: str = "balanced", **changes: Any) -> Policy:
    found = resolve_policy(tier, "small")
    leaves = {f"variance.{key}": Leaf(value=value, origin="test") for key, value in changes.items()}
    return found.model_copy(update={"thresholds": found.thresholds | leaves})


POLICY = policy()


def module(square: float | None, target: str = "ffn", windows: int = WINDOWS) -> ModuleActivations:
    squares = (square,) * windows
    return ModuleActivations(kind="linear", target=target, m=4, n=4, edge_risk=(1.5,) * windows, mean_square=squares)


def activations(squares: Mapping[str, float | None], side: str = "subject", **changes: Any) -> ActivationRecords:
    modules = {name: module(square, "attn" if "attn" in name else "ffn") for name, square in squares.items()}
    fields: dict[str, Any] = {
        "side": side,
        "run": 1,
        "windows_digest": "w",
        "checkpoint_digest": side,
        "windows": tuple(range(WINDOWS)),
        "contract": {},
        "modules": modules,
    }
    return ActivationRecords(**fields | changes)


BASELINE = activations({**dict.fromkeys(DOWN, 4.0), OUT: 4.0}, "baseline")


def subject(*scales: float, **changes: Any) -> ActivationRecords:
    """A subject whose branches are the baseline's times a factor."""
    squares = {name: 4.0 * s * s for name, s in zip([*DOWN, OUT], (*scales, 1.0, 1.0, 1.0, 1.0), strict=False)}
    return activations(squares, **changes)


def trial(delta: float, spread: float = 0.0, windows: int = 32) -> variance.Trial:
    without = [300.0 + i for i in range(windows)]
    signs = [spread * (-1) ** i for i in range(windows)]
    with_scales = [a + 100 * (delta + s) for a, s in zip(without, signs, strict=True)]
    found = variance.Trial.of(without, with_scales, [100] * windows)
    assert found is not None
    return found


# --- proposals ------------------------------------------------------------------------------------
@given(st.lists(st.floats(0.3, 3.0), min_size=3, max_size=3))
def test_alpha_is_what_brings_a_branch_back_to_its_baseline(scales: list[float]) -> None:
    raw = variance.propose(subject(*scales), BASELINE, POLICY).raw
    assert list(raw.values()) == pytest.approx([1 / s for s in scales])


def test_an_equal_subject_proposes_nothing_and_scope_chooses_the_branches() -> None:
    proposal = variance.propose(subject(), BASELINE, POLICY)
    assert (proposal.scales, proposal.targets, proposal.coverage) == ({}, tuple(DOWN), WINDOWS)
    assert variance.propose(subject(), BASELINE, policy("aggressive")).targets == tuple(sorted([*DOWN, OUT]))
    assert variance.propose(subject(), BASELINE, policy("aggressive", scope="attn")).targets == (OUT,)


def test_taps_are_patterns_of_canonical_names() -> None:
    first = policy(tap=["transformer.h.0.mlp.*"])
    assert variance.propose(subject(), BASELINE, first).targets == (DOWN[0],)
    assert variance.propose(subject(), BASELINE, policy(tap=["model.layers.*"])).targets == ()


def test_limits_in_order_deadband_step_and_number_of_modules() -> None:
    scales = (1.01, 1.1, 0.8)
    many = policy(deadband=0.02, max_adjusted_modules=0)
    assert variance.propose(subject(*scales), BASELINE, many).scales == {DOWN[1]: 0.97, DOWN[2]: 1.03}
    assert variance.propose(subject(*scales), BASELINE, policy(deadband=0.02)).scales == {DOWN[2]: 1.03}
    assert variance.propose(subject(*scales), BASELINE, policy(max_adjusted_modules=0)).scales == {DOWN[2]: 1.03}
    wide = policy(deadband=0.02, max_adjusted_modules=0, max_scale_step=1.0)
    assert variance.propose(subject(*scales), BASELINE, wide).scales == {DOWN[1]: pytest.approx(1 / 1.1), DOWN[2]: 1.12}


def test_the_backstop_keeps_the_furthest_when_all_are_small() -> None:
    least = policy(deadband=0.02, min_abs_adjust=0.05)
    assert variance.propose(subject(1.03, 0.96), BASELINE, least).scales == {DOWN[1]: 1.03}
    without = policy(deadband=0.02, min_abs_adjust=0.05, topk_backstop=0)
    assert variance.propose(subject(1.03, 0.96), BASELINE, without).scales == {}


def test_an_outlying_window_does_not_move_the_variance() -> None:
    now = subject()
    squares = (4.0,) * (WINDOWS - 1) + (4000.0,)
    spoiled = now.modules[DOWN[0]].model_copy(update={"mean_square": squares})
    records = now.model_copy(update={"modules": now.modules | {DOWN[0]: spoiled}})
    assert variance.propose(records, BASELINE, POLICY).scales == {}


def test_a_branch_that_is_not_finite_leaves_no_coverage() -> None:
    records = activations({DOWN[0]: None, DOWN[1]: 8.0})
    proposal = variance.propose(records, BASELINE, POLICY)
    assert (proposal.coverage, DOWN[0] in proposal.raw) == (0, False)
    block = variance.assess(proposal, trial(-0.1), POLICY, correct=True)[1]
    assert (block["enabled"], block["calibration"]["status"]) == (False, "insufficient")


def test_other_windows_are_refused() -> None:
    with pytest.raises(EvidenceError, match="windows_digest"):
        variance.propose(subject(windows_digest="other"), BASELINE, POLICY)


# --- gates ----------------------------------------------------------------------------------------
PROPOSAL = variance.propose(subject(1.2), BASELINE, POLICY)


@pytest.mark.parametrize(
    ("delta", "spread", "reason", "enabled"),
    [
        (-0.01, 0.001, "ci_gain_met", True),
        (-0.01, 0.1, "ci_contains_zero", False),
        (0.01, 0.001, "ci_contains_zero", False),
        (-0.0005, 0.0, "ci_gain_met", False),
    ],
)
def test_one_sided_gate_and_the_size_of_the_gain(delta: float, spread: float, reason: str, enabled: bool) -> None:
    _, block = variance.assess(PROPOSAL, trial(delta, spread), POLICY, correct=True)
    assert (block["predictive_gate"]["reason"], block["enabled"]) == (reason, enabled)


@pytest.mark.parametrize(
    ("delta", "spread", "reason"),
    [
        (-0.05, 0.001, "ci_gain_met"),
        (-0.005, 0.0001, "gain_below_threshold"),
        (0.05, 0.001, "regression_detected"),
        (0.005, 0.001, "mean_not_negative"),
        (0.0, 0.1, "ci_contains_zero"),
    ],
)
def test_two_sided_gate(delta: float, spread: float, reason: str) -> None:
    gate = variance.assess(PROPOSAL, trial(delta, spread), policy("conservative"), correct=True)[1]["predictive_gate"]
    assert (gate["reason"], gate["passed"]) == (reason, reason == "ci_gain_met")


@pytest.mark.parametrize(
    ("limits", "spread", "enabled"),
    [
        ({"min_effect_lognll": 0.005}, 0.0, True),
        ({"min_effect_lognll": 0.02}, 0.0, False),  # the mean reaches it, or nothing does
        ({"min_rel_gain": 0.005}, 0.001, True),
        ({"min_rel_gain": 0.005}, 0.02, False),  # the mean gains 1 %, but perhaps it is only 0.3 %
        ({"min_gain": 0.02}, 0.0, False),
    ],
)
def test_each_limit_on_the_gain_counts_by_itself(limits: dict[str, float], spread: float, enabled: bool) -> None:
    none = dict.fromkeys(("min_effect_lognll", "min_rel_gain", "min_gain", "tie_breaker_deadband"), 0.0)
    chosen = policy(predictive_gate=False, **none | limits)
    assert variance.assess(PROPOSAL, trial(-0.01, spread), chosen, correct=True)[1]["enabled"] is enabled


def test_the_guard_only_watches_in_monitor_mode() -> None:
    def never(_: Mapping[str, float]) -> None:
        raise AssertionError("scales were tried")

    block = variance_block(subject(1.2), BASELINE, POLICY, never)
    assert (block["status"], block["enabled"], block["monitor_only"]) == ("warn", False, True)
    assert block["proposed_scales"] == {DOWN[0]: 0.97}
    assert block["predictive_gate"]["reason"] == "monitor_only"
    correcting = policy(monitor_only=False)
    assert variance_block(subject(1.2), BASELINE, correcting, lambda _: trial(-0.01))["enabled"] is True
    assert variance_block(subject(), BASELINE, correcting, never)["predictive_gate"]["reason"] == "no_scales"


def test_a_trial_with_a_broken_loss_is_none_and_enables_nothing() -> None:
    assert variance.Trial.of([1.0, 2.0], [1.0, math.nan], [5, 5]) is None
    _, block = variance.assess(PROPOSAL, None, POLICY, correct=True)
    assert (block["enabled"], block["predictive_gate"]["reason"]) == (False, "no_valid_samples")


def test_a_trial_reports_what_its_interval_follows_from() -> None:
    found = trial(-0.01, 0.001)
    block = variance.assess(PROPOSAL, found, POLICY, correct=True)[1]
    assert block["gain"] == pytest.approx(1 - math.exp(-0.01))
    assert block["ab_test"]["nll_sums_with_ve"] == list(found.scaled)
    points = block["ab_test"]["point_estimates"]
    assert points["ppl_with_ve"] / points["ppl_no_ve"] == pytest.approx(math.exp(-0.01))
    json.dumps(block, allow_nan=False)


# --- scales on a model ----------------------------------------------------------------------------
def test_scales_come_off_to_the_last_bit_even_after_a_crash() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ZeroDivisionError), scaled(model, {"0": 1.03, "1": 0.3}):
        assert torch.equal(model[0].weight, before[0] * 1.03) and torch.equal(model[0].bias, before[1])
        raise ZeroDivisionError
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    with pytest.raises(BrokenContract, match="'2'"), scaled(model, {"0": 1.5, "2": 2.0}):
        pass
    assert torch.equal(model[0].weight, before[0])


# --- chain and probes -----------------------------------------------------------------------------
def test_a_guard_that_breaks_is_an_error_entry_and_missing_room_is_not() -> None:
    def crash() -> dict[str, Any]:
        raise KeyError("x")

    def full() -> dict[str, Any]:
        raise MemoryError

    block = guarded("rmt", crash)
    assert (block["status"], block["failures"][0]["severity"]) == ("error", "error")
    assert "KeyError" in block["failures"][0]["message"] and could_not_run("rmt", "w")["status"] == "error"
    with pytest.raises(MemoryError):
        guarded("rmt", full)


def test_nobody_listens_where_no_guard_of_the_order_needs_it() -> None:
    assert sampled_windows(("invariants", "spectral"), POLICY) == 0
    assert sampled_windows(("rmt",), POLICY) == 8
    assert sampled_windows(("rmt", "variance"), resolve_policy("conservative", "small")) == 10


def scenario(*files: str) -> Scenario:
    return Scenario(
        id="s",
        category="error_injection",
        failure_class="t",
        strictness="informational",
        generation=ErrorGeneration(kind="error", error_type="ve_mlp_scale_skew"),
        requirements=Requirements(detectors_any_of=tuple(ProbeDetector(type="probe", file=f) for f in files)),
    )


def test_a_scenario_asks_for_its_probes_by_its_detectors() -> None:
    assert probes.wanted(scenario()) == ()
    assert probes.wanted(scenario("ve_probe.json", "rmt_probe.json")) == ("rmt_probe.json", "ve_probe.json")
    assert probes.wanted(scenario("other.json")) == ()


def test_the_variance_probe_needs_scales_and_an_improvement() -> None:
    def run(records: ActivationRecords, delta: float) -> dict[str, Any]:
        return probes.probe("ve_probe.json", {"model_id": "m"}, POLICY, records, BASELINE, lambda _: trial(delta))

    good, useless, none = run(subject(1.2), -0.01), run(subject(1.2), 0.01), run(subject(), -0.01)
    assert [d["triggered"] for d in (good, useless, none)] == [True, False, False]
    assert [d["scales_proposed"] for d in (good, useless, none)] == [True, True, False]
    assert {d["status"] for d in (good, useless, none)} == {"ok"}
    assert (good["schema"], good["model_id"], good["windows"]["count"]) == ("ve_probe_v1", "m", WINDOWS)


def test_without_the_gate_a_probe_is_triggered_by_no_proposal_that_nobody_tried() -> None:
    free = policy(predictive_gate=False)
    for tried, expected in ((None, False), (trial(-0.01), True)):
        found = probes.probe("ve_probe.json", {}, free, subject(1.2), BASELINE, lambda _, tried=tried: tried)
        assert (found["scales_proposed"], found["triggered"]) == (True, expected)


def test_the_rmt_probe_is_triggered_by_activations_that_moved() -> None:
    def run(records: ActivationRecords) -> dict[str, Any]:
        return probes.probe("rmt_probe.json", {}, POLICY, records, BASELINE, lambda _: None)

    calm = subject()
    modules = {n: m.model_copy(update={"edge_risk": (2.0,) * WINDOWS}) for n, m in calm.modules.items()}
    assert run(calm)["triggered"] is False
    assert run(calm.model_copy(update={"modules": modules}))["triggered"] is True
    assert probes.failed("rmt_probe.json", {}, "why")["triggered"] is False


def test_probes_keep_what_they_read() -> None:
    whole = BASELINE
    for files, edges, squares in (
        (("rmt_probe.json",), True, False),
        (("ve_probe.json",), False, True),
        (("rmt_probe.json", "ve_probe.json"), True, True),
    ):
        kept = probes.read_by(files, whole)
        targets = {name for name, module in whole.modules.items() if module.target}
        assert kept.modules.keys() == (set(whole.modules) if edges else targets)
        assert any(module.edge_risk for module in kept.modules.values()) == edges
        assert {name for name, module in kept.modules.items() if module.mean_square} == (targets if squares else set())
        assert kept.whole == (edges and squares and targets == set(whole.modules))

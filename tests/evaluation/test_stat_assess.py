from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.policy import Leaf, resolve_policy
from evpack.evaluation.assess import assess, paired_differences
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.tail import linear_quantile
from evpack.files import canonical_json

SMALL = resolve_policy("balanced", "small")


def _noise(n, sd=0.01, mean=0.0, seed=3):
    generator = random.Random(seed)  # noqa: S311
    return [generator.gauss(mean, sd) for _ in range(n)]


def _pair(records, shift=0.0, n=32, sd=0.01, **changes):
    """Baseline near 3 nats, subject shifted by `shift` nats plus paired noise whose mean is exactly zero."""
    base = [3.0 + value for value in _noise(n, 0.3, seed=1)]
    noise = _noise(n, sd)
    centre = sum(noise) / n
    subject = [b + shift + e - centre for b, e in zip(base, noise, strict=True)]
    return records(subject, **changes), records(base, side="baseline", **changes)


def test_no_op_is_accepted_with_a_degenerate_interval(records) -> None:
    losses = [3.0 + i / 100 for i in range(32)]
    found = assess(records(losses), records(losses, side="baseline"), SMALL)
    metric = found.primary_metric
    for block, ratio in ((metric, metric["ratio_vs_baseline"]), (metric["pooled"], metric["pooled"]["ratio"])):
        assert (ratio, block["ci"], block["display_ci"], block["degenerate"]) == (1.0, [0.0, 0.0], [1.0, 1.0], True)
    assert found.outcome == "accept"
    assert found.validation == {
        "primary_metric_acceptable": True,
        "preview_final_drift_acceptable": True,
        "hysteresis_applied": False,
    }


def test_known_answer_with_two_windows_per_arm(records) -> None:
    # differences 0.00, 0.02, 0.04, 0.06: mean 0.03, sd 0.0258199, t(3) 3.1824463, half width 0.0410851
    base = [1.0, 1.0, 2.0, 2.0]
    subject = [1.0, 1.02, 2.04, 2.06]
    metric = assess(records(subject), records(base, side="baseline"), SMALL).primary_metric
    assert metric["pooled"]["ratio"] == pytest.approx(math.exp(0.03))
    assert metric["pooled"]["pairs"] == 4
    assert metric["pooled"]["ci"] == pytest.approx([0.03 - 0.0410851, 0.03 + 0.0410851], abs=1e-6)
    assert metric["preview"] == pytest.approx(math.exp(1.01))
    assert metric["final"] == pytest.approx(math.exp(2.05))
    # final windows alone: 0.04, 0.06, sd 0.0141421, t(1) 12.7062047, half width 0.1270620
    assert metric["ratio_vs_baseline"] == pytest.approx(math.exp(0.05))
    assert metric["ratio_vs_baseline"] == pytest.approx(metric["final"] / metric["baseline_final"])
    assert metric["ci"] == pytest.approx([0.05 - 0.1270620, 0.05 + 0.1270620], abs=1e-6)
    assert metric["display_ci"] == pytest.approx([math.exp(bound) for bound in metric["ci"]])
    assert metric["drift"] == pytest.approx(math.exp(1.04))
    assert metric["relative_drift"] == pytest.approx(math.exp(0.04))


@pytest.mark.parametrize(
    ("shift", "sd", "outcome"),
    [
        (0.0, 0.01, "accept"),
        (0.05, 0.01, "accept"),
        (0.3, 0.01, "reject"),
        (math.log(1.10), 0.1, "inconclusive"),
        (0.0, 1.0, "inconclusive"),
        (-0.3, 0.01, "inconclusive"),
    ],
)
def test_three_outcomes(records, shift, sd, outcome) -> None:
    found = assess(*_pair(records, shift, sd=sd), SMALL)
    assert found.outcome == outcome
    assert found.validation["primary_metric_acceptable"] == (outcome == "accept")


def test_hysteresis_is_applied_and_said(records) -> None:
    found = assess(*_pair(records, math.log(1.1005), sd=1e-5), SMALL)
    assert found.outcome == "accept" and found.validation["hysteresis_applied"]
    found = assess(*_pair(records, math.log(1.1025), sd=1e-5), SMALL)
    assert found.outcome == "reject" and not found.validation["hysteresis_applied"]


def test_tokens_weigh_the_metric(records) -> None:
    tokens = [100, 300, 100, 300]
    found = assess(
        records([1.0, 2.0, 1.0, 2.0], tokens=tokens),
        records([1.0, 1.0, 1.0, 1.0], side="baseline", tokens=tokens),
        SMALL,
    )
    assert math.log(found.primary_metric["pooled"]["ratio"]) == pytest.approx(0.75)
    assert found.dataset_stats["paired_delta_summary"]["mean_unweighted"] == pytest.approx(0.5)


def test_one_broken_window_degrades_and_rejects_and_nothing_is_invented(records) -> None:
    subject, baseline = _pair(records)
    broken = [w.nll_sum / 127 for w in subject.windows]
    broken[5] = None
    found = assess(records(broken), baseline, SMALL)
    metric = found.primary_metric
    assert found.outcome == "reject" and metric["degraded"] and metric["invalid"]
    assert metric["preview"] is None and metric["pooled"]["ratio"] is None and metric["pooled"]["ci"] is None
    assert metric["ratio_vs_baseline"] == pytest.approx(metric["final"] / metric["baseline_final"])
    assert metric["final"] is not None
    assert metric["degraded_reason"] == "non_finite_pm:1 windows:loss is nan"
    assert not found.validation["primary_metric_acceptable"]
    assert not found.validation["preview_final_drift_acceptable"]
    assert found.dataset_stats["paired_delta_summary"]["dropped_non_finite"] == 1
    assert found.dataset_stats["paired_delta_summary"]["n"] == 31
    assert found.confidence["label"] == "Low"


def test_all_windows_broken(records) -> None:
    _, baseline = _pair(records)
    found = assess(records([None] * 32), baseline, SMALL)
    assert found.outcome == "reject" and found.primary_metric["degraded"]
    canonical_json(found.primary_metric)


def test_an_overflowing_ratio_is_null_and_rejected(records) -> None:
    _, baseline = _pair(records)
    found = assess(records([5e30] * 32), baseline, SMALL)
    assert found.primary_metric["ratio_vs_baseline"] is None
    assert found.primary_metric["degraded_reason"] == "non_finite_pm:overflow"
    assert found.outcome == "reject"
    canonical_json([found.primary_metric, found.dataset_stats, found.tail, found.confidence])


def _other(records, **window):
    baseline = records([3.0] * 8, side="baseline").to_json()
    baseline["windows"][2].update(window)
    return WindowRecords.parse(json.dumps(baseline).encode(), "baseline")


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [
        (lambda r: r([3.0] * 6, side="baseline"), "preview_unexpected_ids:[3]"),
        (lambda r: r([3.0] * 10, side="baseline"), "preview_missing_ids:[4]"),
        (lambda r: _other(r, tokens_sha256="f" * 64), "preview_token_mismatch:[2]"),
        (lambda r: _other(r, predicted_tokens=100), "preview_count_mismatch:[2]"),
        (lambda r: _other(r, nll_sum=None, reason="nan"), "preview_baseline_non_finite:[2]"),
        (lambda r: _other(r, id=77), "preview_missing_ids:[77]"),
        (lambda r: r([3.0] * 8, side="baseline", seed=43), "seed_mismatch:42/43"),
        (lambda r: r([3.0] * 8, side="baseline", run=2), "run_mismatch:1/2"),
        (lambda r: r([3.0] * 8, side="baseline", model="other"), "model_mismatch:tiny/other"),
        (lambda r: r([3.0] * 8, side="baseline", windows_digest="0"), f"windows_digest_mismatch:{'a' * 64}/0"),
        (
            lambda r: r(
                [3.0] * 8,
                side="baseline",
                compute={"device": "cpu", "dtype": "float32", "attention": "eager", "batch": 4},
            ),
            "compute_mismatch:batch:8/4",
        ),
        (lambda r: r([3.0] * 8), "sides_swapped:subject/subject"),
    ],
)
def test_records_that_do_not_pair_say_nothing_about_the_subject(records, baseline, reason) -> None:
    found = assess(records([9.0] * 8), baseline(records), SMALL)
    metric = found.primary_metric
    assert found.dataset_stats["window_pairing_reason"] == reason
    assert found.outcome == "inconclusive"
    assert metric["invalid"] and not metric["degraded"] and metric["ratio_vs_baseline"] is None
    assert not found.validation["primary_metric_acceptable"]
    assert found.dataset_stats["paired_windows"] == found.dataset_stats["paired_windows_pooled"] == 0
    assert not found.tail["evaluated"]


def _repeat(records, source, target, side):
    document = records([3.0] * 8, side=side).to_json()
    document["windows"][target]["tokens_sha256"] = document["windows"][source]["tokens_sha256"]
    return WindowRecords.parse(json.dumps(document).encode(), side)


@pytest.mark.parametrize(("source", "target", "reason"), [(0, 7, "overlapping_windows"), (0, 1, "duplicate_windows")])
def test_repeated_windows_do_not_count_twice(records, source, target, reason) -> None:
    sides = (_repeat(records, source, target, side) for side in ("subject", "baseline"))
    found = assess(*sides, SMALL)
    assert found.dataset_stats["window_pairing_reason"] == reason
    assert found.outcome == "inconclusive"


def test_an_empty_arm_does_not_pair(records) -> None:
    def one_arm(side):
        document = records([3.0] * 8, side=side).to_json()
        document["windows"] = document["windows"][:4]
        return WindowRecords.parse(json.dumps(document).encode(), side)

    found = assess(one_arm("subject"), one_arm("baseline"), SMALL)
    assert found.dataset_stats["window_pairing_reason"] == "final_no_baseline_reference"


def test_drift_is_judged_relative_to_the_baseline(records) -> None:
    base = [3.0] * 16 + [3.5] * 16  # a healthy model on easy and hard windows: raw drift 1.65
    found = assess(records(base), records(base, side="baseline"), SMALL)
    assert found.primary_metric["drift"] == pytest.approx(math.exp(0.5))
    assert found.primary_metric["relative_drift"] == 1.0
    assert found.validation["preview_final_drift_acceptable"]
    worse = [3.0] * 16 + [3.56] * 16
    found = assess(records(worse), records(base, side="baseline"), SMALL)
    assert not found.validation["preview_final_drift_acceptable"]


@pytest.mark.parametrize(("final", "ok"), [(3.0, True), (3.04, True), (3.06, False), (2.96, True), (2.94, False)])
def test_drift_has_a_bound_on_either_side(records, final, ok) -> None:
    found = assess(records([3.0] * 16 + [final] * 16), records([3.0] * 32, side="baseline"), SMALL)
    assert found.validation["preview_final_drift_acceptable"] is ok


def test_a_perplexity_that_overflows_degrades_also_where_the_ratio_is_one(records) -> None:
    found = assess(records([800.0] * 32), records([800.0] * 32, side="baseline"), SMALL)
    assert found.primary_metric["pooled"]["ratio"] == 1.0
    assert found.primary_metric["degraded_reason"] == "non_finite_pm:overflow"
    assert found.outcome == "reject" and not found.validation["preview_final_drift_acceptable"]


def test_too_few_tokens_or_windows_are_not_acceptable(records) -> None:
    for tier_profile, fits in (("small", True), ("ci", False), ("release", False)):
        found = assess(*_pair(records), resolve_policy("balanced", tier_profile))
        assert found.outcome == "accept"
        assert found.validation["primary_metric_acceptable"] is fits
    short = assess(*_pair(records, n=30), SMALL)
    assert not short.dataset_stats["coverage"]["ok"]
    assert not short.validation["primary_metric_acceptable"]


def test_token_floor_has_its_tolerance_and_its_fraction(records) -> None:
    losses = [3.0] * 32
    pair = records(losses, tokens=123), records(losses, side="baseline", tokens=123)  # 3936 of 4000 tokens
    assert assess(*pair, SMALL).dataset_stats["tokens"] == {
        "used": 3936,
        "required": 4000,
        "floor": 3920,
        "available": None,
        "ok": True,
    }
    assert not assess(*pair, SMALL, tokens_available=1_000_000).dataset_stats["tokens"]["ok"]


def test_the_token_floor_has_no_tolerance_without_coverage(records) -> None:
    pair = records([3.0] * 30, tokens=131), records([3.0] * 30, side="baseline", tokens=131)  # 3930 of 4000 tokens
    assert assess(*pair, SMALL).dataset_stats["tokens"] | {"available": 0} == {
        "used": 3930,
        "required": 4000,
        "floor": 4000,
        "available": 0,
        "ok": False,
    }


def test_small_samples_are_unstable_and_never_high(records) -> None:
    found = assess(*_pair(records, sd=1e-4), SMALL)
    assert found.primary_metric["unstable"]
    assert found.confidence["label"] == "Medium"
    large = assess(*_pair(records, n=800, sd=1e-4), resolve_policy("balanced", "ci"))
    assert not large.primary_metric["unstable"]
    assert large.confidence["label"] == "High"


def test_a_detected_shift_needs_64_windows(records) -> None:
    assert assess(*_pair(records, 0.01, n=32, sd=1e-3), SMALL).primary_metric["detected_shift"] is None
    assert assess(*_pair(records, 0.01, n=64, sd=1e-3), SMALL).primary_metric["detected_shift"] is True
    assert assess(*_pair(records, -0.01, n=64, sd=1e-3), SMALL).primary_metric["detected_shift"] is True
    assert assess(*_pair(records, 0.001, n=64, sd=1e-3), SMALL).primary_metric["detected_shift"] is False


def test_tail_leaves_no_flag_when_it_cannot_be_judged(records) -> None:
    found = assess(*_pair(records), SMALL)
    assert found.tail["reason"] == "16 final windows, 50 needed"
    assert "primary_metric_tail_acceptable" not in found.validation


def test_tail_warns_without_failing(records) -> None:
    base = [3.0 + i / 1000 for i in range(200)]
    subject = [b + (1.0 if i >= 185 else 0.0) for i, b in enumerate(base)]
    found = assess(records(subject), records(base, side="baseline"), SMALL)
    assert found.tail["violations"] == ["quantile_max_exceeded"]
    assert found.tail["warned"] and found.validation["primary_metric_tail_acceptable"]
    assert found.tail["stats"]["tail_mass"] == pytest.approx(0.15)
    assert found.tail["stats"]["max"] == pytest.approx(1.0)


@pytest.mark.parametrize(("mode", "passes"), [("warn", True), ("fail", False)])
def test_many_windows_a_little_worse_are_a_tail_too(records, mode, passes) -> None:
    leaves = {"mass_max": 0.1, "mode": mode}
    changed = {f"metrics.pm_tail.{key}": Leaf(value=value, origin="test") for key, value in leaves.items()}
    policy = SMALL.model_copy(update={"thresholds": SMALL.thresholds | changed})
    base = [3.0 + i / 1000 for i in range(200)]
    for worse, violations in ((9, []), (11, ["tail_mass_exceeded"])):
        subject = [b + (0.001 if i >= 200 - worse else 0.0) for i, b in enumerate(base)]
        found = assess(records(subject), records(base, side="baseline"), policy)
        assert found.tail["violations"] == violations
        assert found.validation["primary_metric_tail_acceptable"] is (passes or not violations)


def test_linear_quantile_is_numpys() -> None:
    import numpy

    values = sorted(_noise(37))
    for q in (0.0, 0.13, 0.5, 0.95, 1.0):
        assert linear_quantile(values, q) == pytest.approx(float(numpy.quantile(values, q)), rel=1e-12)


LOSSES = st.lists(st.floats(0, 20), min_size=4, max_size=20).filter(lambda v: len(v) % 2 == 0)


@given(LOSSES, st.randoms(use_true_random=False))
def test_order_of_windows_changes_no_figure(raw, losses, generator) -> None:
    def parse(document):
        return WindowRecords.parse(canonical_json(document), "r")

    subject, baseline = raw(losses), raw([loss / 2 for loss in losses], side="baseline")
    before = assess(parse(subject), parse(baseline), SMALL)
    generator.shuffle(subject["windows"])
    generator.shuffle(baseline["windows"])
    after = assess(parse(subject), parse(baseline), SMALL)
    assert after == before


@given(LOSSES, LOSSES)
def test_outcome_follows_the_interval(raw, ours, theirs) -> None:
    n = min(len(ours), len(theirs))
    subject = WindowRecords.parse(canonical_json(raw(ours[:n])), "s")
    baseline = WindowRecords.parse(canonical_json(raw(theirs[:n], side="baseline")), "b")
    found = assess(subject, baseline, SMALL)
    low, high = found.primary_metric["pooled"]["ci"]
    limit = math.log(1.10 + 0.002)
    expected = "accept" if high <= limit and low >= math.log(0.95) else "reject" if low > limit else "inconclusive"
    assert found.outcome == expected
    assert len(paired_differences(subject, baseline)[0]) == n
    canonical_json([found.primary_metric, found.dataset_stats, found.tail, found.confidence])

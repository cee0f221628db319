"""The verdict on one run: pair the losses, put an interval on the difference, apply the gates.

Pure: two sets of records and a policy in, plain JSON out. All comparisons are made on the log scale, where a ratio
cannot overflow. Three outcomes: accept (the whole interval lies within the limits), reject (the whole interval lies
above the limit, or the metric is degraded), else inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evpack.catalog.floors import Arm
from evpack.catalog.policy import Policy
from evpack.evaluation.accuracy import assess_accuracy
from evpack.evaluation.interval import Interval, exp_or_none, paired_t_interval
from evpack.evaluation.pairing import match_fraction, overlap_fraction, pairing_reason
from evpack.evaluation.records import ARMS, WindowRecords
from evpack.evaluation.tail import assess_tail

Outcome = Literal["accept", "reject", "inconclusive"]
Pairs = tuple[list[float], list[float]]
"""Differences in nats per predicted token, and predicted tokens."""


@dataclass(frozen=True)
class Assessment:
    """What the records say about one run, as the blocks of a report."""

    primary_metric: dict[str, Any]
    dataset_stats: dict[str, Any]
    validation: dict[str, bool]
    tail: dict[str, Any]
    confidence: dict[str, Any]
    accuracy: dict[str, Any] | None = None
    """Of campaigns that ask for it."""

    @property
    def outcome(self) -> Outcome:
        """accept, reject or inconclusive."""
        outcome: Outcome = self.primary_metric["outcome"]
        return outcome


def paired_differences(subject: WindowRecords, baseline: WindowRecords) -> Pairs:
    """Log-loss differences per predicted token (nats) and predicted tokens, in the subject's window order.

    Windows whose loss is not finite are left out; records that do not pair give empty lists.
    """
    return ([], []) if pairing_reason(subject, baseline) is not None else _differences(subject, baseline, ARMS)


def _differences(subject: WindowRecords, baseline: WindowRecords, arms: Sequence[Arm]) -> Pairs:
    """Of records that pair."""
    theirs = {(w.arm, w.id): w.nll_sum for w in baseline.windows}
    differences, weights = [], []
    for window in subject.windows:
        reference = theirs[window.arm, window.id]
        if window.arm in arms and window.nll_sum is not None and reference is not None:
            differences.append((window.nll_sum - reference) / window.predicted_tokens)
            weights.append(float(window.predicted_tokens))
    return differences, weights


def assess(
    subject: WindowRecords,
    baseline: WindowRecords,
    policy: Policy,
    *,
    tokens_available: int | None = None,
    noop_shift: float | None = None,
) -> Assessment:
    """Compare a subject with its baseline on the windows of one run.

    A subject that is at fault (a loss that is not finite) is degraded and rejected. Records that do not pair say
    nothing about the subject: the outcome is inconclusive, `invalid` is set and no gate passes.

    Args:
        tokens_available: tokens of the whole evaluation text, for the policy's minimum fraction; None leaves it out.
        noop_shift: of the model's calibration (`noop.noop_shift`); None where it measured none.
    """
    reason = pairing_reason(subject, baseline)
    metric = _Metric(subject, baseline, policy, reason, noop_shift)
    stats = _dataset_stats(subject, baseline, policy, reason, tokens_available)
    enough = stats["tokens"]["ok"] and (stats["coverage"]["ok"] or not policy.flag("metrics.coverage.enforced"))
    stats["paired_delta_summary"] = metric.delta_summary()
    tail = assess_tail(subject, baseline, policy, sound=reason is None)
    accuracy = assess_accuracy(subject, baseline, policy, sound=reason is None, tokens_available=tokens_available)
    accurate = accuracy is None or accuracy["acceptable"]
    low, high = policy.drift_band
    drift = metric.relative_drift
    validation = {
        "primary_metric_acceptable": metric.outcome == "accept" and enough and accurate,
        "preview_final_drift_acceptable": drift is not None and not metric.degraded and low <= drift <= high,
        "hysteresis_applied": metric.hysteresis_applied,
    }
    if tail["evaluated"]:
        validation["primary_metric_tail_acceptable"] = tail["passed"]
    unstable = policy.flag("metrics.unstable") or not stats["tokens"]["ok"]
    block = metric.to_json() | {"unstable": unstable}
    confidence = _confidence(block, validation["primary_metric_acceptable"], policy)
    return Assessment(block, stats, validation, tail, confidence, accuracy)


class _Metric:
    """Perplexity of the subject relative to the baseline.

    The gates go by preview and final windows pooled (twice the windows, a narrower interval). The final windows alone
    give the figures that the reference's report has under the same names, see docs/decisions/0007-pooled-ratio.md.
    """

    def __init__(
        self, subject: WindowRecords, baseline: WindowRecords, policy: Policy, reason: str | None, noop: float | None
    ) -> None:
        self.policy = policy
        self.noop_shift = noop
        self.shift_band = max(policy.number("metrics.detected_shift.band"), abs(noop or 0.0))
        self.pairing = reason
        self.broken = [w for w in subject.windows if w.nll_sum is None]
        nothing: Pairs = ([], [])
        self.finite = nothing if reason else _differences(subject, baseline, ARMS)
        self.interval: Interval = paired_t_interval(*(nothing if self.broken else self.finite))
        no_final = reason or any(w.arm == "final" for w in self.broken)
        final = nothing if no_final else _differences(subject, baseline, ("final",))
        self.final_interval: Interval = paired_t_interval(*final)
        self.loss = {arm: _mean_loss(subject, arm) for arm in ARMS}
        self.reference = {arm: _mean_loss(baseline, arm) for arm in ARMS}
        self.perplexity = {arm: exp_or_none(self.loss[arm]) for arm in ARMS}
        self.ratio = exp_or_none(self.interval.mean)
        self.ratio_final = exp_or_none(_minus(self.loss["final"], self.reference["final"])) if reason is None else None
        drifts = (_minus(side["final"], side["preview"]) for side in (self.loss, self.reference))
        self.raw_drift, self.baseline_drift = map(exp_or_none, drifts)
        self.relative_drift = self._relative_drift()
        self.degraded_reason = self._degraded_reason()
        self.degraded = self.degraded_reason is not None
        self.minimum, self.limit = policy.acceptance
        self.limit_applied = self.limit + policy.number("metrics.pm_ratio.hysteresis_ratio")
        self.outcome: Outcome = self._outcome()

    def _relative_drift(self) -> float | None:
        if self.pairing is not None:
            return None
        ours = _minus(self.loss["final"], self.loss["preview"])
        theirs = _minus(self.reference["final"], self.reference["preview"])
        return exp_or_none(_minus(ours, theirs))

    def _degraded_reason(self) -> str | None:
        if self.pairing is not None:
            return None
        if self.broken:
            return f"non_finite_pm:{len(self.broken)} windows:{self.broken[0].reason}"
        values = (self.ratio, *self.perplexity.values())
        return "non_finite_pm:overflow" if any(value is None for value in values) else None

    def _outcome(self) -> Outcome:
        if self.pairing is not None:
            return "inconclusive"
        if self.degraded:
            return "reject"
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return "inconclusive"
        limit = math.log(self.limit_applied)
        if high <= limit and low >= math.log(self.minimum):
            return "accept"
        return "reject" if low > limit else "inconclusive"

    @property
    def hysteresis_applied(self) -> bool:
        """Accepted only because of the hysteresis on the limit."""
        high = self.interval.high
        return self.outcome == "accept" and high is not None and high > math.log(self.limit)

    def _detected_shift(self) -> bool | None:
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or self.interval.n < self.policy.number("metrics.detected_shift.min_windows"):
            return None
        return low > self.shift_band or high < -self.shift_band

    def delta_summary(self) -> dict[str, Any]:
        """The paired differences in nats per token; where the subject has broken windows, of the rest."""
        differences, weights = self.finite
        over = paired_t_interval(differences, weights)
        return {
            "mean": over.mean,
            "mean_unweighted": math.fsum(differences) / len(differences) if differences else None,
            "std": over.std,
            "min": min(differences, default=None),
            "max": max(differences, default=None),
            "n": over.n,
            "dropped_non_finite": len(self.broken),
            "degenerate": over.degenerate,
            "degenerate_reason": "no_variation" if over.degenerate else over.reason,
        }

    def to_json(self) -> dict[str, Any]:
        """The report's primary_metric block: the final windows by the reference's names, then the pooled ones."""
        low, high = self.policy.drift_band
        measured = {} if self.noop_shift is None else {"noop_shift": self.noop_shift, "shift_band": self.shift_band}
        return {
            "kind": "ppl_causal",
            "unit": "ppl",
            "direction": "lower",
            "analysis_basis": "mean_logloss",
            "preview": self.perplexity["preview"],
            "final": self.perplexity["final"],
            "analysis_point_preview": self.loss["preview"],
            "analysis_point_final": self.loss["final"],
            "baseline_preview": exp_or_none(self.reference["preview"]),
            "baseline_final": exp_or_none(self.reference["final"]),
            "ratio_vs_baseline": self.ratio_final,
            **_bounds(self.final_interval),
            "pooled": {"ratio": self.ratio, **_bounds(self.interval)},
            "gating_basis": "pooled",
            "method": "paired_student_t",
            "alpha": 0.05,
            "acceptance_range": {"min": self.minimum, "max": self.limit, "max_with_hysteresis": self.limit_applied},
            "drift": self.raw_drift,
            "baseline_drift": self.baseline_drift,
            "relative_drift": self.relative_drift,
            "drift_band": {"min": low, "max": high},
            "detected_shift": self._detected_shift(),
            **measured,
            "outcome": self.outcome,
            "degraded": self.degraded,
            "degraded_reason": self.degraded_reason,
            "invalid": self.degraded or self.pairing is not None,
            "invalid_reason": self.pairing or self.degraded_reason,
        }


def _bounds(interval: Interval) -> dict[str, Any]:
    """An interval as a report shows it: `ci` in nats per token, `display_ci` as a ratio."""
    log = (interval.low, interval.high)
    ratio = [exp_or_none(bound) for bound in log]
    return {
        "ci": None if None in log else list(log),
        "display_ci": None if None in ratio else ratio,
        "pairs": interval.n,
        "degenerate": interval.degenerate,
        "no_interval_reason": interval.reason,
    }


def _dataset_stats(
    subject: WindowRecords, baseline: WindowRecords, policy: Policy, reason: str | None, available: int | None
) -> dict[str, Any]:
    counts = {arm: len(subject.arm(arm)) for arm in ARMS}
    required = {arm: int(policy.number(f"metrics.coverage.{arm}")) for arm in ARMS}
    coverage: dict[str, Any] = {
        arm: {"used": counts[arm], "required": required[arm], "ok": counts[arm] >= required[arm]} for arm in ARMS
    }
    coverage |= {"tier": policy.tier, "ok": all(coverage[arm]["ok"] for arm in ARMS)}
    return {
        "requested_preview": len(baseline.arm("preview")),
        "requested_final": len(baseline.arm("final")),
        "actual_preview": counts["preview"],
        "actual_final": counts["final"],
        "coverage": coverage,
        "tokens": _token_floor(sum(w.predicted_tokens for w in subject.windows), policy, available, coverage["ok"]),
        "pairing": "paired_baseline",
        "paired_windows": 0 if reason else counts["final"],
        "paired_windows_pooled": 0 if reason else len(subject.windows),
        "window_match_fraction": match_fraction(subject, baseline),
        "window_overlap_fraction": overlap_fraction(subject),
        "window_pairing_reason": reason,
        "non_finite_windows": sum(w.nll_sum is None for w in subject.windows),
    }


def least_of_text(available: int, policy: Policy) -> int:
    """Tokens that a run must predict of a text of so many, by the policy's share."""
    return math.ceil(available * policy.number("metrics.pm_ratio.min_token_fraction"))


def _token_floor(used: int, policy: Policy, available: int | None, covered: bool) -> dict[str, Any]:
    """Predicted tokens against the floor; with full window coverage the floor has a small tolerance."""
    required = max(int(policy.number("metrics.pm_ratio.min_tokens")), least_of_text(available or 0, policy))
    tolerance = policy.number("metrics.pm_ratio.min_tokens_tolerance") if covered else 0.0
    floor = math.floor(required * (1 - tolerance))
    return {"used": used, "required": required, "floor": floor, "available": available, "ok": used >= floor}


def _confidence(metric: dict[str, Any], acceptable: bool, policy: Policy) -> dict[str, Any]:
    """How narrow the ratio's interval is; an unstable measurement is never High."""
    threshold = policy.number("metrics.confidence.ratio_width")
    bounds = metric["pooled"]["display_ci"]
    width = None if bounds is None else bounds[1] - bounds[0]
    label = "Low"
    if width is not None and width <= 2 * threshold:
        label = "High" if acceptable and not metric["unstable"] and width <= threshold else "Medium"
    return {"label": label, "basis": "ratio", "width": width, "threshold": threshold, "unstable": metric["unstable"]}


def _mean_loss(records: WindowRecords, arm: Arm) -> float | None:
    """Nats per predicted token over an arm; None when the arm is empty or any of its losses is not finite."""
    windows = records.arm(arm)
    losses = [w.nll_sum for w in windows if w.nll_sum is not None]
    if not windows or len(losses) < len(windows):
        return None
    return math.fsum(losses) / sum(w.predicted_tokens for w in windows)


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right

"""Next-token accuracy beside perplexity: percentage points that the subject loses on the same windows.

Only where the campaign asks for it (PACK_ACCURACY); then records carry the count of right predictions of every window.
"""

from __future__ import annotations

import math
from typing import Any

from evpack.catalog.floors import Arm
from evpack.catalog.policy import Policy
from evpack.evaluation.interval import Interval, paired_t_interval
from evpack.evaluation.records import ARMS, WindowRecords


def assess_accuracy(
    subject: WindowRecords, baseline: WindowRecords, policy: Policy, *, sound: bool, tokens_available: int | None
) -> dict[str, Any] | None:
    """An entry of the report's `secondary_metrics`; None where neither side counted right predictions.

    The paired 95 % t interval of the change, preview and final windows pooled as for perplexity, is held against the
    smallest acceptable change: accept where it lies above, reject where it lies below or a loss of the subject is not
    finite, else inconclusive.

    Args:
        sound: whether the two sides pair.
        tokens_available: tokens of the whole evaluation text, for the policy's minimum fraction; None leaves it out.
    """
    if not any(window.correct is not None for side in (subject, baseline) for window in side.windows):
        return None
    broken = any(window.nll_sum is None for window in subject.windows)
    reason = _reason(subject, baseline, sound=sound, broken=broken)
    interval = _interval(subject, baseline) if reason is None else paired_t_interval([])
    limit = policy.number("metrics.accuracy.delta_min_pp") - policy.number("metrics.accuracy.hysteresis_delta_pp")
    outcome = "reject" if broken and sound else _outcome(interval, limit)
    examples = _examples(subject, policy, tokens_available)
    bounds = (interval.low, interval.high)
    return {
        "kind": "accuracy",
        "unit": "percent",
        "direction": "higher",
        **{arm: _percent(subject, arm) for arm in ARMS},
        **{f"baseline_{arm}": _percent(baseline, arm) for arm in ARMS},
        "delta_pp": interval.mean,
        "ci": None if None in bounds else list(bounds),
        "pairs": interval.n,
        "degenerate": interval.degenerate,
        "no_interval_reason": reason or interval.reason,
        "delta_min_pp": policy.number("metrics.accuracy.delta_min_pp"),
        "delta_min_pp_with_hysteresis": limit,
        "examples": examples,
        "outcome": outcome,
        "acceptable": outcome == "accept" and examples["ok"],
    }


def _reason(subject: WindowRecords, baseline: WindowRecords, *, sound: bool, broken: bool) -> str | None:
    if not sound:
        return "the records do not pair"
    if broken:
        return "a loss is not finite"
    if any(window.correct is None for side in (subject, baseline) for window in side.windows):
        return "right predictions were not counted everywhere"
    return None


def _interval(subject: WindowRecords, baseline: WindowRecords) -> Interval:
    """Of sides that pair and counted everywhere; in percentage points, weighted by predicted tokens."""
    theirs = {(window.arm, window.id): window.correct or 0 for window in baseline.windows}
    changes = [
        100.0 * ((window.correct or 0) - theirs[window.arm, window.id]) / window.predicted_tokens
        for window in subject.windows
    ]
    return paired_t_interval(changes, [float(window.predicted_tokens) for window in subject.windows])


def _outcome(interval: Interval, limit: float) -> str:
    if interval.low is None or interval.high is None:
        return "inconclusive"
    if interval.low >= limit:
        return "accept"
    return "reject" if interval.high < limit else "inconclusive"


def _examples(subject: WindowRecords, policy: Policy, available: int | None) -> dict[str, Any]:
    """Predictions of the final windows against the policy's floor."""
    used = sum(window.predicted_tokens for window in subject.arm("final"))
    share = math.ceil((available or 0) * policy.number("metrics.accuracy.min_examples_fraction"))
    required = max(int(policy.number("metrics.accuracy.min_examples")), share)
    return {"used": used, "required": required, "ok": used >= required}


def _percent(records: WindowRecords, arm: Arm) -> float | None:
    """Right predictions of an arm; None where it is empty or they were not counted in all of its windows."""
    windows = records.arm(arm)
    counted = [window.correct for window in windows if window.correct is not None]
    if not windows or len(counted) < len(windows):
        return None
    return 100.0 * sum(counted) / sum(window.predicted_tokens for window in windows)

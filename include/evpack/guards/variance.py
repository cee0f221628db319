"""Variance guard (data-driven variance equalisation): would scaling the ways out of residual branches mend the subject?

Pure: records and losses in, findings out. The variance of a branch is compared with the baseline's on the same
windows, ``alpha = sqrt(V_baseline / V_subject)``; scales outside the deadband are proposed. In correct mode the
proposal is tried on the run's windows and *enabled* when the paired gain passes the gates. The primary metric is
always that of the subject as it is stored. The guard has no flag: it fails only when it could not run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean, median
from typing import Any

from evpack.catalog.policy import Policy
from evpack.checkpoint.scope import block_of
from evpack.evaluation.interval import Interval, exp_or_none, paired_t_interval
from evpack.evaluation.tail import linear_quantile
from evpack.guards.base import GuardResult, Violation
from evpack.guards.hooks_records import ActivationRecords, ModuleActivations
from evpack.guards.rmt import require_same_windows

NAME = "variance"
_SMALLEST = 1e-9
"""Floor of a variance, so that a silent branch gives a finite scale."""
_WINSOR_FROM, _WINSOR, _CHUNKS = 10, 0.02, 8


@dataclass(frozen=True)
class Proposal:
    """Scales that would bring the subject's branches back to the baseline's variance."""

    targets: tuple[str, ...]
    raw: Mapping[str, float]
    """alpha of every target, before any limit."""
    scales: Mapping[str, float]
    """What is proposed; empty when nothing lies outside the deadband."""
    coverage: int
    """Windows on which every target has a finite variance on both sides."""


@dataclass(frozen=True)
class Trial:
    """Losses of the subject with the scales applied, paired with those without."""

    scaled: tuple[float, ...]
    """Sums of negative log-likelihoods per window with the scales applied, nats, in schedule order."""
    mean_loss: float
    """Nats per predicted token without the scales."""
    interval: Interval
    """Of the difference with minus without, nats per predicted token."""

    @classmethod
    def of(cls, without: Sequence[float], scaled: Sequence[float], tokens: Sequence[int]) -> Trial | None:
        """None when a loss is not finite.

        Args:
            without: sums of negative log-likelihoods per window, nats.
            scaled: the same with the scales applied.
            tokens: predicted tokens per window.
        """
        if not all(map(math.isfinite, (*without, *scaled))):
            return None
        deltas = [(b - a) / n for a, b, n in zip(without, scaled, tokens, strict=True)]
        loss = math.fsum(without) / sum(tokens)
        return cls(tuple(scaled), loss, paired_t_interval(deltas, [float(n) for n in tokens]))


def propose(subject: ActivationRecords, baseline: ActivationRecords, policy: Policy) -> Proposal:
    """Scales from the two models' variances on the same windows.

    Raises:
        EvidenceError: when the records are not of the same windows.
    """
    require_same_windows(subject, baseline)
    targets = sorted(name for name, module in baseline.modules.items() if _tapped(name, module, policy))
    pairs = {n: (subject.modules[n], baseline.modules[n]) for n in targets if n in subject.modules}
    finite = {n: pair for n, pair in pairs.items() if all(_finite(module) for module in pair)}
    raw = {n: math.sqrt(_variance(before) / _variance(now)) for n, (now, before) in sorted(finite.items())}
    whole = finite and len(finite) == len(targets)
    return Proposal(tuple(targets), raw, _limited(raw, policy), len(subject.windows) if whole else 0)


def _tapped(name: str, module: ModuleActivations, policy: Policy) -> bool:
    """Whether a module is a way out in the policy's scope that one of its taps names.

    Taps are patterns of the reference's canonical names, ``transformer.h.<block>.<mlp or attn>.c_proj``, which stand
    for a block's ways out whatever a model calls them.
    """
    if module.target is None or policy.text("variance.scope") not in (module.target, "both"):
        return False
    canonical = f"transformer.h.{block_of(name)}.{'mlp' if module.target == 'ffn' else 'attn'}.c_proj"
    return any(fnmatchcase(canonical, tap) for tap in policy.words("variance.tap"))


def assess(
    proposal: Proposal, trial: Trial | None, policy: Policy, *, correct: bool
) -> tuple[GuardResult, dict[str, Any]]:
    """The guard's result and its block of a report (without the places of the records).

    Args:
        trial: None where nothing was tried.
        correct: whether scales may be enabled; else the guard only watches.
    """
    needed = int(policy.number("variance.calibration.min_coverage"))
    covered = proposal.coverage >= needed
    gate = predictive_gate(proposal, trial, policy, covered=covered, correct=correct)
    enabled = correct and covered and bool(proposal.scales) and gate["passed"] and _worth_it(trial, policy)
    findings = []
    if proposal.scales:
        worst = max(proposal.scales, key=lambda name: abs(proposal.raw[name] - 1.0))
        text = f"scales proposed for {len(proposal.scales)} modules, furthest {worst}: {proposal.raw[worst]:.4g}"
        findings.append(Violation("scales_proposed", "warning", text, tuple(proposal.scales), len(proposal.scales)))
    result = GuardResult(NAME, "post", tuple(findings), metrics={"enabled": enabled})
    interval = trial.interval if trial else None
    gain = -math.expm1(interval.mean) if interval and interval.mean is not None else None
    return result, {
        "status": result.status,
        "action": result.action,
        "enabled": enabled,
        "monitor_only": not (correct and covered),
        "gain": gain,
        "ratio_ci": _ratio_ci(interval),
        "scope": policy.text("variance.scope"),
        "tap": list(policy.words("variance.tap")),
        "target_module_names": list(proposal.targets),
        "raw_scales": dict(proposal.raw),
        "proposed_scales": dict(proposal.scales),
        "max_abs_deviation": max((abs(alpha - 1.0) for alpha in proposal.raw.values()), default=None),
        "failures": [violation.to_json() for violation in result.violations],
        "calibration": {
            "requested": int(policy.number("variance.calibration.windows")),
            "coverage": proposal.coverage,
            "min_coverage": needed,
            "status": "complete" if covered else "insufficient" if proposal.targets else "no_targets",
        },
        "predictive_gate": gate,
        "ab_test": {
            "windows_used": len(trial.scaled) if trial else 0,
            "nll_sums_with_ve": list(trial.scaled) if trial else None,
            "provenance": "windows of the run; without scales the losses of the primary metric",
            "point_estimates": {
                "ppl_no_ve": exp_or_none(trial.mean_loss) if trial else None,
                "ppl_with_ve": exp_or_none(trial.mean_loss + (trial.interval.mean or 0.0)) if trial else None,
            },
        },
    }


def predictive_gate(
    proposal: Proposal, trial: Trial | None, policy: Policy, *, covered: bool, correct: bool
) -> dict[str, Any]:
    """Does the paired difference of the losses show an improvement? The reference's reasons.

    The interval is the 95 % t interval of the paired differences (the reference draws a bootstrap).
    """
    effect = policy.number("variance.min_effect_lognll")
    one_sided = policy.flag("variance.predictive_one_sided")
    interval = trial.interval if trial else None
    reason = _untried(proposal, trial, policy, covered, correct)
    if reason is None and interval is not None:
        reason = _gate_reason(interval, effect, one_sided)
    low, high, mean = (interval.low, interval.high, interval.mean) if interval else (None, None, None)
    return {
        "evaluated": interval is not None,
        "passed": reason in ("ci_gain_met", "disabled"),
        "reason": reason,
        "one_sided": one_sided,
        "min_effect": effect,
        "method": "paired_student_t",
        "mean_delta": mean,
        "delta_ci": None if low is None or high is None else [low, high],
        "gain_ci": None if low is None or high is None else [-high, -low],
    }


def _untried(proposal: Proposal, trial: Trial | None, policy: Policy, covered: bool, correct: bool) -> str | None:
    if not policy.flag("variance.predictive_gate"):
        return "disabled"
    if not correct:
        return "monitor_only"
    if not covered:
        return "insufficient_coverage" if proposal.targets else "no_calibration"
    if not proposal.scales:
        return "no_scales"
    return "no_valid_samples" if trial is None else None


def _gate_reason(interval: Interval, effect: float, one_sided: bool) -> str:
    low, high, mean = interval.low, interval.high, interval.mean
    if low is None or high is None or mean is None:
        return "ci_unavailable"
    if one_sided:
        if high >= 0:
            return "ci_contains_zero"
    elif low <= 0 <= high:
        return "ci_contains_zero"
    elif low > 0:
        return "regression_detected" if low >= effect and mean >= effect else "mean_not_negative"
    return "gain_below_threshold" if high > -effect or mean > -effect else "ci_gain_met"


def _worth_it(trial: Trial | None, policy: Policy) -> bool:
    """The gates on the size of the gain, in log space (an absolute floor would ask 1 % of a perplexity of 5)."""
    if trial is None or trial.interval.mean is None or trial.interval.high is None:
        return False
    least = policy.number("variance.min_rel_gain")
    gain = -math.expm1(trial.interval.mean)
    return (
        gain >= max(least, policy.number("variance.min_gain") + policy.number("variance.tie_breaker_deadband"))
        and -trial.interval.mean >= policy.number("variance.min_effect_lognll")
        and trial.interval.high <= math.log1p(-least)
    )


def _limited(raw: Mapping[str, float], policy: Policy) -> dict[str, float]:
    """Clamp, deadband, smallest change, largest step, backstop and number of modules, in the reference's order."""
    low, high = (float(end) for end in policy.thresholds["variance.clamp"].value)  # type: ignore[union-attr]
    deadband, least = policy.number("variance.deadband"), policy.number("variance.min_abs_adjust")
    step, most = policy.number("variance.max_scale_step"), int(policy.number("variance.max_adjusted_modules"))
    clamped = {name: min(max(alpha, low), high) for name, alpha in raw.items()}
    outside = {name: alpha for name, alpha in clamped.items() if abs(alpha - 1.0) >= deadband}
    kept = {name: alpha for name, alpha in outside.items() if abs(alpha - 1.0) >= least}
    if not kept and outside and policy.number("variance.topk_backstop") > 0:
        furthest = max(outside, key=lambda name: abs(outside[name] - 1.0))
        if abs(outside[furthest] - 1.0) >= max(deadband / 2, least / 2):
            kept = {furthest: outside[furthest]}
    ranked = sorted(kept, key=lambda name: (kept[name] < 1.0, -abs(kept[name] - 1.0), name))
    chosen = ranked[:most] if most > 0 else ranked
    return {name: 1.0 + min(max(kept[name] - 1.0, -step), step) for name in sorted(chosen)}


def _finite(module: ModuleActivations) -> bool:
    return bool(module.mean_square) and all(square is not None for square in module.mean_square)


def _variance(module: ModuleActivations) -> float:
    """Median of chunk means of the windows' mean squares, outliers drawn in where there are enough values."""
    values = [square for square in module.mean_square if square is not None]
    if len(values) >= _WINSOR_FROM:
        ordered = sorted(values)
        low, high = linear_quantile(ordered, _WINSOR), linear_quantile(ordered, 1 - _WINSOR)
        values = [min(max(value, low), high) for value in values]
    if len(values) > _CHUNKS:
        edges = [round(i * len(values) / _CHUNKS) for i in range(_CHUNKS + 1)]
        values = [fmean(values[a:b]) for a, b in itertools.pairwise(edges)]
    return max(median(values), _SMALLEST)


def _ratio_ci(interval: Interval | None) -> list[float] | None:
    if interval is None or interval.low is None or interval.high is None:
        return None
    bounds = [exp_or_none(interval.low), exp_or_none(interval.high)]
    return None if None in bounds else [bound for bound in bounds if bound is not None]

"""The tail metric: a few windows much worse than the baseline, which a mean may hide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evpack.catalog.policy import Policy
from evpack.evaluation.records import WindowRecords

_QUANTILES = (0.5, 0.9, 0.95, 0.99)


def linear_quantile(values: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation between order statistics (numpy's default, type 7 of Hyndman and Fan).

    Args:
        values: sorted, at least one.
        q: between 0 and 1.
    """
    position = q * (len(values) - 1)
    below = math.floor(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (position - below)


def assess_tail(subject: WindowRecords, baseline: WindowRecords, policy: Policy, *, sound: bool) -> dict[str, Any]:
    """The report's primary_metric_tail block, over the final arm's paired differences (nats per token).

    Not evaluated (and then no flag) when switched off, when the records do not pair, when a loss is not finite, or
    with fewer windows than the policy asks for. Mode ``warn`` reports violations without failing.
    """
    mode = policy.text("metrics.pm_tail.mode")
    needed = int(policy.number("metrics.pm_tail.min_windows"))
    quantile = policy.number("metrics.pm_tail.quantile")
    limits = {
        "quantile": quantile,
        "quantile_max": policy.number("metrics.pm_tail.quantile_max"),
        "epsilon": policy.number("metrics.pm_tail.epsilon"),
        "mass_max": policy.number("metrics.pm_tail.mass_max"),
        "min_windows": needed,
    }
    block: dict[str, Any] = {"mode": mode, "policy": limits, "evaluated": False}
    windows = subject.arm("final")
    if mode == "off":
        return block | {"reason": "switched off"}
    if not sound:
        return block | {"reason": "the records do not pair"}
    if any(w.nll_sum is None for w in windows):
        return block | {"reason": "a loss is not finite"}
    if len(windows) < max(needed, 1):
        return block | {"reason": f"{len(windows)} final windows, {needed} needed"}
    reference = {w.id: w.nll_sum or 0.0 for w in baseline.arm("final")}
    pairs = [((w.nll_sum or 0.0) - reference[w.id], w.predicted_tokens) for w in windows]
    differences = sorted(total / tokens for total, tokens in pairs)
    beyond = [(total / tokens, tokens) for total, tokens in pairs if total / tokens > limits["epsilon"]]
    stats = {f"q{round(q * 100)}": linear_quantile(differences, q) for q in _QUANTILES}
    at_limit = linear_quantile(differences, quantile)
    mass = len(beyond) / len(pairs)
    violations = ["quantile_max_exceeded"] if at_limit > limits["quantile_max"] else []
    if mass > limits["mass_max"]:
        violations.append("tail_mass_exceeded")
    return block | {
        "evaluated": True,
        "n": len(pairs),
        "stats": stats
        | {
            "quantile": at_limit,
            "max": differences[-1],
            "tail_mass": mass,
            "tail_mass_weighted": sum(tokens for _, tokens in beyond) / sum(tokens for _, tokens in pairs),
        },
        "violations": violations,
        "warned": bool(violations) and mode != "fail",
        "passed": not violations or mode != "fail",
    }

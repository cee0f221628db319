"""The gating interval: Student's t on paired differences, reproducible to the last bit without scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from evpack.files import parse_json


@dataclass(frozen=True)
class Interval:
    """A two-sided 95 % interval of a mean, in the unit of the differences."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    degenerate: bool
    """All differences are equal, so low = mean = high."""
    std: float | None = None
    """Standard deviation of the (weighted) differences, n - 1 in the denominator."""
    reason: str | None = None
    """Why there is no interval."""


def t_quantile(df: int) -> float:
    """The 0.975 quantile of Student's t; above the table's last df that df's value (a slightly wider interval).

    Raises:
        ValueError: for df < 1.
    """
    if df < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {df}")
    table = _table()
    return table[min(df, len(table)) - 1]


def paired_t_interval(differences: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """The 95 % t interval of the mean of paired differences.

    With unequal weights w the mean is sum(w d) / sum(w) and its variance the linearised one of a ratio estimator,
    sum((w_i (d_i - mean) / mean(w))^2) / (n (n - 1)) (Cochran, Sampling Techniques, section 2.11); with equal
    weights this is the ordinary paired t interval. Sums are exact (`math.fsum`), so order does not matter.

    Args:
        differences: one finite number per window.
        weights: one positive number per window, e.g. predicted tokens; None for equal weights.

    Raises:
        ValueError: when a difference is not finite, a weight is not positive, or the lengths differ.
    """
    n = len(differences)
    weights = [1.0] * n if weights is None else weights
    if len(weights) != n:
        raise ValueError(f"{n} differences but {len(weights)} weights")
    if not all(map(math.isfinite, differences)):
        raise ValueError("differences must be finite")
    if not all(weight > 0 for weight in weights):
        raise ValueError("weights must be positive")
    if n == 0:
        return Interval(None, None, None, 0, degenerate=False, reason="no pairs")
    average = math.fsum(weights) / n
    relative = [weight / average for weight in weights]
    mean = math.fsum(w * d for w, d in zip(relative, differences, strict=True)) / n
    if n == 1:
        return Interval(mean, None, None, 1, degenerate=False, reason="a single pair has no spread")
    if min(differences) == max(differences):
        mean = differences[0]
        return Interval(mean, mean, mean, n, degenerate=True, std=0.0)
    squares = math.fsum((w * (d - mean)) ** 2 for w, d in zip(relative, differences, strict=True))
    std = math.sqrt(squares / (n - 1))
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, degenerate=False, std=std)


def exp_or_none(value: float | None) -> float | None:
    """exp, None where it overflows or there is nothing to raise."""
    if value is None:
        return None
    try:
        return math.exp(value)
    except OverflowError:
        return None


@cache
def _table() -> tuple[float, ...]:
    path = resources.files("evpack.catalog") / "data" / "t_quantiles.json"
    return tuple(parse_json(path.read_bytes(), "t_quantiles.json")["df_from_1"])

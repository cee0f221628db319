"""Is a reported BCa interval what the losses give? Written from the formulas, without scipy; decides nothing.

Draws are those of numpy's default generator with the stated seed, so agreement is usually to the last digits; another
generation of numpy may draw otherwise, which is why only a difference that matters is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

BCA_SEED_OFFSET = 503
"""Added to a run's seed, so that no other random stream of the run repeats these draws (reference's offset)."""
_TOLERANCE = 0.05
"""Of the interval's width: twice what two independent bootstraps of 2,000 replicates differ by."""
_MOST_REPLICATES = 20_000
"""A report may not make its reader work for longer (2,000 are drawn)."""


def bca_doubt(reported: Any, differences: Sequence[float], weights: Sequence[float], run_seed: int) -> str | None:
    """Why a report's `bca` block is doubtful, None when it is not.

    Args:
        reported: the block as `bca.bca_interval` makes it.
        differences: finite paired log-loss differences per window.
        weights: predicted tokens per window.
        run_seed: seed of the run.
    """
    if not isinstance(reported, Mapping):
        return None if reported is None else "bca is no block"
    if reported.get("seed") != run_seed + BCA_SEED_OFFSET:
        return f"bca was drawn with seed {reported.get('seed')!r}, not with {run_seed + BCA_SEED_OFFSET}"
    replicates, alpha = reported.get("replicates"), reported.get("alpha")
    if not isinstance(replicates, int) or not 1 < replicates <= _MOST_REPLICATES:
        return f"bca has {replicates!r} replicates, which cannot be drawn again"
    if not isinstance(alpha, float) or not 0.0 < alpha < 1.0:
        return f"bca has alpha {alpha!r}, which cannot be drawn again"
    ours = bca_bounds(differences, weights, seed=run_seed + BCA_SEED_OFFSET, replicates=replicates, alpha=alpha)
    given = reported.get("ci")
    if ours is None or given is None:
        return None if ours is given else f"bca is {given!r}, the losses give {ours!r}"
    width = ours[1] - ours[0]
    try:
        furthest = max(abs(float(theirs) - mine) for theirs, mine in zip(given, ours, strict=True))
    except (TypeError, ValueError):
        return f"bca is {given!r}, which is no interval"
    if not furthest <= _TOLERANCE * width + 1e-12:
        return f"bca is {given}, the losses give {list(ours)}: more than {_TOLERANCE:.0%} of the width apart"
    return None


def bca_bounds(
    differences: Sequence[float], weights: Sequence[float], *, seed: int, replicates: int, alpha: float
) -> tuple[float, float] | None:
    """BCa bounds of sum(w d) / sum(w), windows resampled with their weights (Efron 1987, section 3; DiCiccio and
    Efron 1996, equations 2.2, 2.3 and 6.6 for the acceleration by the jackknife).

    Returns:
        None for fewer than two windows, and where a bound is not finite.
    """
    import numpy

    n = len(differences)
    if n < 2:
        return None
    if min(differences) == max(differences):
        return differences[0], differences[0]
    d, w = numpy.asarray(differences, dtype=float), numpy.asarray(weights, dtype=float)
    drawn = numpy.random.default_rng(seed).integers(0, n, (replicates, n))
    total = n * w[0] if (w == w[0]).all() else w[drawn].sum(axis=1)
    found = (d * w)[drawn].sum(axis=1) / total
    estimate = float((d * w).sum() / w.sum())
    left_out = ((d * w).sum() - d * w) / (w.sum() - w)
    spread = left_out.mean() - left_out
    scale = float((spread**2).sum()) ** 1.5
    below = float(((found < estimate).sum() + (found <= estimate).sum()) / (2 * replicates))
    if scale == 0.0 or not 0.0 < below < 1.0:
        return None
    normal, acceleration = NormalDist(), float((spread**3).sum()) / (6.0 * scale)
    bias = normal.inv_cdf(below)

    def bound(tail: float) -> float:
        moved = bias + normal.inv_cdf(tail)
        share = normal.cdf(bias + moved / (1.0 - acceleration * moved))
        return float(numpy.percentile(found, 100.0 * share))

    low, high = bound(alpha / 2), bound(1.0 - alpha / 2)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None

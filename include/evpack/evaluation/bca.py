"""The bias-corrected and accelerated bootstrap interval, reported beside the gating t interval. Gates nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evpack.evaluation.bca_check import BCA_SEED_OFFSET


def bca_interval(
    differences: Sequence[float], weights: Sequence[float], *, seed: int, replicates: int, alpha: float = 0.05
) -> dict[str, Any]:
    """BCa interval of sum(w d) / sum(w), windows resampled with their weights (Efron 1987, as in scipy).

    Args:
        differences: finite paired log-loss differences per window.
        weights: predicted tokens per window.
        seed: seed of the run; the draws depend on nothing else.

    Returns:
        ``{method, ci: [low, high] | null, reason, seed, replicates, alpha, versions}``, ready for a report.
    """
    import numpy
    import scipy
    from scipy.stats import bootstrap

    block: dict[str, Any] = {
        "method": "bca",
        "ci": None,
        "reason": None,
        "seed": seed + BCA_SEED_OFFSET,
        "replicates": replicates,
        "alpha": alpha,
        "versions": {"numpy": numpy.__version__, "scipy": scipy.__version__},
    }
    if len(differences) < 2:
        return block | {"reason": "fewer than two pairs"}
    if min(differences) == max(differences):
        return block | {"ci": [differences[0], differences[0]], "reason": "all differences are equal"}

    def weighted_mean(d: Any, w: Any, axis: int) -> Any:
        return (d * w).sum(axis=axis) / w.sum(axis=axis)

    result = bootstrap(
        (numpy.asarray(differences, dtype=float), numpy.asarray(weights, dtype=float)),
        weighted_mean,
        paired=True,
        vectorized=True,
        n_resamples=replicates,
        confidence_level=1 - alpha,
        method="BCa",
        rng=numpy.random.default_rng(seed + BCA_SEED_OFFSET),
    )
    interval = [float(result.confidence_interval.low), float(result.confidence_interval.high)]
    if not all(map(math.isfinite, interval)):
        return block | {"reason": "the bootstrap gave no finite bound"}
    return block | {"ci": interval}

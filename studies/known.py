"""Known answers: what the project computes beside what must come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from evpack.checkpoint.reader import Checkpoint
from evpack.evaluation.bca import bca_interval
from evpack.guards.hooks import edge_risk
from evpack.guards.hooks_records import evenly_spaced
from evpack.guards.spectral_sigma import as_double, top_singular_value

RANDOM_MATRICES = 200
LARGEST_SIDE = 640
REAL_MATRICES = 60
"""Of each model."""
LARGEST_REAL = 2048
NOISE_SHAPES = ((128, 96), (128, 192), (128, 576), (128, 1536), (1024, 96))
"""Tokens of a window x features of the study's models, and a tall one."""
NOISE_DRAWS = 40
SPATIAL = (48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41)
"""Spatial test data, column A (Efron and Tibshirani 1993, table 14.1)."""
SPATIAL_VARIANCE = (115.8, 259.6)
"""Published 90 % BCa interval of its variance (table 14.2)."""


def known_answers(
    checkpoints: Iterable[Checkpoint], samples: Sequence[Sequence[float]], *, matrices: int, draws: int
) -> dict[str, Any]:
    """All comparisons.

    Args:
        checkpoints: whose real matrices are measured.
        samples: real paired differences, for BCa.
        matrices: number of random matrices.
        draws: noise matrices per shape.
    """
    return {
        "sigma_random": _errors(_random_matrices(matrices)),
        "sigma_real": _errors(m for checkpoint in checkpoints for m in _real_matrices(checkpoint)),
        "noise_edge": [_noise(rows, columns, draws) for rows, columns in NOISE_SHAPES],
        "bca": _bca(samples),
    }


def _errors(matrices: Iterable[Any]) -> dict[str, Any]:
    """Largest relative error of sigma against the exact decomposition."""
    import torch

    errors = []
    for matrix in matrices:
        exact = float(torch.linalg.svdvals(as_double(matrix))[0])
        errors.append(abs(top_singular_value(matrix) / exact - 1.0))
    return {"matrices": len(errors), "largest_relative_error": max(errors), "limit": 1e-3}


def _random_matrices(count: int) -> Iterable[Any]:
    """Gaussian ones of many shapes and scales; every third has a few large values close together."""
    import torch

    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        rows, columns = (int(n) for n in torch.randint(2, LARGEST_SIDE, (2,), generator=draw))
        matrix = torch.randn(rows, columns, generator=draw) * 10.0 ** (seed % 7 - 3)
        if seed % 3 == 0:
            rank = min(3, rows, columns)
            left, right = torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw)
            matrix = matrix + left @ right * float(matrix.abs().max())
        yield matrix


def _real_matrices(checkpoint: Checkpoint) -> Iterable[Any]:
    """Stored matrices, evenly over the names; not the largest (embeddings take the exact decomposition minutes)."""
    shapes = {name: checkpoint.info(name).shape for name in checkpoint.names()}
    names = [name for name, shape in shapes.items() if len(shape) == 2 and max(shape) <= LARGEST_REAL]
    yield from (checkpoint.read(names[k]) for k in evenly_spaced(len(names), REAL_MATRICES))


def _noise(rows: int, columns: int, draws: int) -> dict[str, Any]:
    """Edge risk of pure noise, which is near 1 (Bai and Yin 1993), a little below at finite size (Johnstone 2001).

    Johnstone: the largest squared singular value lies about ``mu + sigma TW`` with the mean -1.21 of Tracy and Widom's
    law for real matrices, ``mu = (sqrt(m-1) + sqrt(n))^2``, of which centred columns have m - 1 rows.
    """
    import torch

    risks = []
    for seed in range(draws):
        draw = torch.Generator().manual_seed(seed)
        risks.append(edge_risk(torch.randn(rows, columns, generator=draw)))
    root = math.sqrt(rows - 1) + math.sqrt(columns)
    spread = root * (1 / math.sqrt(rows - 1) + 1 / math.sqrt(columns)) ** (1 / 3)
    centred = math.sqrt(rows / (rows - 1))  # centring takes one row's worth of the variance that is divided by
    expected = centred * math.sqrt(root**2 - 1.2065 * spread) / (math.sqrt(rows) + math.sqrt(columns))
    mean = sum(risks) / len(risks)
    return {
        "rows": rows,
        "columns": columns,
        "draws": draws,
        "mean": mean,
        "min": min(risks),
        "max": max(risks),
        "expected": expected,
        "relative_error": mean / expected - 1.0,
    }


def _bca(samples: Sequence[Sequence[float]]) -> dict[str, Any]:
    """BCa of a second, plain implementation against the published example, and against the project's on real data."""
    published = plain_bca(SPATIAL, lambda x, axis: x.var(axis=axis), 0.10, 20000, seed=1)
    rows = []
    for sample in samples:
        ours = bca_interval(list(sample), [1.0] * len(sample), seed=1, replicates=20000)["ci"]
        plain = plain_bca(sample, lambda x, axis: x.mean(axis=axis), 0.05, 20000, seed=2)
        width = plain[1] - plain[0]
        rows.append(max(abs(a - b) for a, b in zip(ours, plain, strict=True)) / width)
    return {
        "published": {
            "source": "Efron and Tibshirani 1993, table 14.2",
            "interval": list(SPATIAL_VARIANCE),
            "found": list(published),
        },
        "real_samples": len(rows),
        "largest_difference_in_widths": max(rows, default=None),
    }


def plain_bca(
    data: Sequence[float], statistic: Callable[..., Any], alpha: float, replicates: int, seed: int
) -> tuple[float, float]:
    """Efron's BCa (1987) written out once more, for comparison with the one in use.

    Args:
        statistic: of an array along an axis.
    """
    import numpy
    from scipy.stats import norm

    values = numpy.asarray(data, dtype=float)
    n = len(values)
    draws = numpy.random.default_rng(seed).integers(0, n, (replicates, n))
    estimates = numpy.sort(statistic(values[draws], axis=1))
    here = float(statistic(values, axis=0))
    bias = norm.ppf((numpy.sum(estimates < here) + numpy.sum(estimates == here) / 2) / replicates)
    without = numpy.array([statistic(numpy.delete(values, k), axis=0) for k in range(n)])
    influence = without.mean() - without
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    bounds = []
    for z in (norm.ppf(alpha / 2), norm.ppf(1 - alpha / 2)):
        level = norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        bounds.append(float(numpy.quantile(estimates, level)))
    return bounds[0], bounds[1]

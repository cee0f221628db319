from __future__ import annotations

import random

import pytest

from evpack.evaluation.bca import bca_interval
from evpack.evaluation.interval import paired_t_interval


def _sample(n=64):
    generator = random.Random(5)  # noqa: S311
    return [generator.gauss(0.02, 0.03) for _ in range(n)], [127.0] * n


def test_bca_is_seeded_and_near_the_t_interval() -> None:
    differences, weights = _sample()
    first = bca_interval(differences, weights, seed=42, replicates=999)
    assert first == bca_interval(differences, weights, seed=42, replicates=999)
    assert first["ci"] != bca_interval(differences, weights, seed=43, replicates=999)["ci"]
    t = paired_t_interval(differences)
    assert first["ci"] == pytest.approx([t.low, t.high], abs=0.2 * (t.high - t.low))


def test_bca_equals_scipy_for_equal_weights() -> None:
    import numpy
    from scipy.stats import bootstrap

    differences, weights = _sample(32)
    found = bca_interval(differences, weights, seed=1, replicates=500)
    rng = numpy.random.default_rng(found["seed"])
    expected = bootstrap((numpy.array(differences),), numpy.mean, n_resamples=500, rng=rng).confidence_interval
    assert found["ci"] == pytest.approx([expected.low, expected.high], rel=1e-9)


@pytest.mark.parametrize(("differences", "ci"), [([], None), ([0.1], None), ([0.1, 0.1], [0.1, 0.1])])
def test_bca_of_too_little_or_of_equal_pairs_says_why(differences, ci) -> None:
    found = bca_interval(differences, [1.0] * len(differences), seed=1, replicates=100)
    assert found["ci"] == ci
    assert found["reason"]

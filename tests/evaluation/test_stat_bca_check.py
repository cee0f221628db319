"""The second BCa: against scipy's, draw by draw, and what it says about a report's block."""

from __future__ import annotations

import random

import pytest

from evpack.evaluation.bca import bca_interval
from evpack.evaluation.bca_check import bca_bounds, bca_doubt


def sample(seed: int, n: int, *, skewed: bool) -> tuple[list[float], list[float]]:
    draw = random.Random(seed)  # noqa: S311 - test data
    shape = (lambda: draw.expovariate(100.0)) if skewed else (lambda: draw.gauss(0.001, 0.01))
    return [shape() for _ in range(n)], [float(draw.choice((127, 127, 64))) for _ in range(n)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n", [2, 8, 32, 64])
def test_it_gives_what_scipy_gives(seed: int, n: int) -> None:
    d, w = sample(seed, n, skewed=seed % 2 == 0)
    theirs = bca_interval(d, w, seed=seed, replicates=1000)
    ours = bca_bounds(d, w, seed=theirs["seed"], replicates=1000, alpha=0.05)
    if theirs["ci"] is None:
        assert ours is None
    else:
        assert ours == pytest.approx(theirs["ci"], rel=1e-9, abs=1e-15)


def test_equal_and_too_few_differences() -> None:
    assert bca_bounds([0.5] * 4, [1.0] * 4, seed=1, replicates=100, alpha=0.05) == (0.5, 0.5)
    assert bca_bounds([0.5], [1.0], seed=1, replicates=100, alpha=0.05) is None


def test_a_block_that_follows_raises_no_doubt() -> None:
    d, w = sample(3, 32, skewed=False)
    assert bca_doubt(bca_interval(d, w, seed=42, replicates=2000), d, w, 42) is None
    assert bca_doubt(bca_interval([0.1], [1.0], seed=42, replicates=2000), [0.1], [1.0], 42) is None
    assert bca_doubt(None, d, w, 42) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: {**b, "ci": [b["ci"][0] * 0.5 - 0.001, b["ci"][1]]}, "more than 5%"),
        (lambda b: {**b, "ci": None}, "the losses give"),
        (lambda b: {**b, "ci": "wide"}, "no interval"),
        (lambda b: {**b, "ci": [float("nan"), 1.0]}, "more than 5%"),
        (lambda b: {**b, "seed": 1}, "seed"),
        (lambda b: {**b, "replicates": 10**9}, "cannot be drawn again"),
        (lambda b: {**b, "alpha": 0}, "cannot be drawn again"),
        (lambda b: [1], "no block"),
    ],
)
def test_a_block_that_does_not_follow_is_doubtful(change, says: str) -> None:
    d, w = sample(3, 32, skewed=False)
    assert says in (bca_doubt(change(bca_interval(d, w, seed=42, replicates=2000)), d, w, 42) or "")


def test_other_draws_of_as_many_replicates_raise_no_doubt() -> None:
    d, w = sample(5, 64, skewed=False)
    other = bca_interval(d, w, seed=9000, replicates=2000)
    assert bca_doubt(other | {"seed": 42 + 503}, d, w, 42) is None

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.evaluation.interval import paired_t_interval, t_quantile

DIFFERENCES = st.lists(st.floats(-50, 50, allow_nan=False), min_size=2, max_size=40)


@pytest.mark.parametrize(
    ("df", "printed"), [(1, 12.706), (5, 2.571), (10, 2.228), (30, 2.042), (60, 2.000), (120, 1.980)]
)
def test_quantiles_are_those_of_printed_tables(df, printed) -> None:
    assert t_quantile(df) == pytest.approx(printed, abs=5e-4)


def test_quantiles_agree_with_scipy_and_fall() -> None:
    from scipy.stats import t

    values = [t_quantile(df) for df in range(1, 2001)]
    assert values == pytest.approx([float(t.ppf(0.975, df)) for df in range(1, 2001)], rel=1e-12)
    assert all(a > b for a, b in itertools.pairwise(values))
    assert t_quantile(10**6) == values[-1] > t.ppf(0.975, 10**6)


def test_no_quantile_below_one_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile(0)


def test_published_example_of_student() -> None:
    """Student (1908), additional hours of sleep of ten patients, second drug minus first: mean 1.58, s 1.23."""
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = paired_t_interval(sleep)
    assert found.mean == pytest.approx(1.58)
    assert found.std == pytest.approx(1.23, abs=5e-3)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_equals_scipy_on_random_samples() -> None:
    from scipy import stats

    generator = random.Random(7)  # noqa: S311
    for n in (2, 3, 16, 32, 500):
        sample = [generator.gauss(0.01, 0.05) for _ in range(n)]
        expected = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
        found = paired_t_interval(sample)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-11, abs=1e-14)


def test_equal_differences_give_a_degenerate_interval() -> None:
    found = paired_t_interval([0.1, 0.1, 0.1], [3, 5, 9])
    assert (found.mean, found.low, found.high, found.degenerate) == (0.1, 0.1, 0.1, True)


@pytest.mark.parametrize(("sample", "reason"), [([], "no pairs"), ([0.3], "single pair")])
def test_fewer_than_two_pairs_give_no_interval(sample, reason) -> None:
    found = paired_t_interval(sample)
    assert found.low is None and found.high is None and not found.degenerate
    assert reason in found.reason


@pytest.mark.parametrize(
    ("sample", "weights"), [([1.0, math.nan], None), ([1.0, math.inf], None), ([1.0, 2.0], [1, 0]), ([1.0, 2.0], [1])]
)
def test_unusable_input_is_an_error_not_a_number(sample, weights) -> None:
    with pytest.raises(ValueError):
        paired_t_interval(sample, weights)


def test_weighted_mean_and_linearised_spread_by_hand() -> None:
    # d = 1, 3 with weights 1, 3: mean 2.5; relative weights 0.5, 1.5; residuals -0.75, 0.75; variance 1.125
    found = paired_t_interval([1.0, 3.0], [1, 3])
    assert found.mean == 2.5
    assert found.std == pytest.approx(math.sqrt(1.125))
    assert found.high - found.mean == pytest.approx(12.706204736174 * math.sqrt(1.125 / 2))


@given(DIFFERENCES, st.integers(1, 4096))
def test_equal_weights_change_nothing(sample, weight) -> None:
    assert paired_t_interval(sample, [weight] * len(sample)) == paired_t_interval(sample)


@given(DIFFERENCES, st.randoms(use_true_random=False))
def test_order_of_windows_changes_nothing(sample, generator) -> None:
    weights = [1 + index % 3 for index in range(len(sample))]
    order = list(range(len(sample)))
    generator.shuffle(order)
    mixed = paired_t_interval([sample[i] for i in order], [weights[i] for i in order])
    if not mixed.degenerate:
        assert mixed == paired_t_interval(sample, weights)


@given(DIFFERENCES)
def test_mirrored_differences_mirror_the_interval(sample) -> None:
    there, back = paired_t_interval(sample), paired_t_interval([-d for d in sample])
    assert (back.low, back.high) == (-there.high, -there.low)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=40), st.integers(-1000, 1000))
def test_a_shift_shifts_the_interval(sample, shift) -> None:
    there, moved = paired_t_interval(sample), paired_t_interval([d + shift for d in sample])
    assert (moved.low, moved.high) == pytest.approx((there.low + shift, there.high + shift), abs=1e-9)
    assert moved.degenerate == there.degenerate


@given(DIFFERENCES)
def test_the_interval_holds_the_mean_and_only_equal_samples_are_degenerate(sample) -> None:
    found = paired_t_interval(sample)
    assert found.low <= found.mean <= found.high
    assert found.degenerate == (len(set(sample)) == 1)


@pytest.mark.parametrize("n", [16, 32])
def test_interval_covers_about_95_percent(n) -> None:
    """600 seeded samples; 3 Monte Carlo errors (0.9 points each) on either side."""
    generator = random.Random(20261123)  # noqa: S311
    hits = 0
    for _ in range(600):
        found = paired_t_interval([generator.gauss(0.02, 0.03) for _ in range(n)])
        hits += found.low <= 0.02 <= found.high
    assert 0.923 <= hits / 600 <= 0.977

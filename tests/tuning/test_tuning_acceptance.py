"""P(all runs accept): known answers at both ends, what must lower it, and the interval of the estimate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from evpack.catalog.policy import Policy
from evpack.tuning.acceptance import Shape, acceptance, clopper_pearson, judge, passes
from evpack.tuning.entry import REQUIRED, pooled

LIMIT = math.log(1.102)
"""The balanced tier's ratio limit with its hysteresis, as a difference of log losses."""

MakePool = Callable[..., Any]


def chance(pool: Any, policy: Policy, shape: Shape, resamples: int = 100) -> float:
    return acceptance(*pool, policy, shape, resamples=resamples).probability


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 1.0), (0.08, 1.0), (LIMIT + 0.02, 0.0), (-0.08, 0.0)])
def test_clear_cases(pool: MakePool, policy: Policy, shape: Shape, mean: float, expected: float) -> None:
    assert chance(pool(mean), policy, shape) == expected


def test_one_run_at_the_edge_is_accepted_half_of_the_time(pool: MakePool, policy: Policy, shape: Shape) -> None:
    spread, windows = 0.02, 32
    edge = LIMIT - 2.04 * spread / math.sqrt(windows)  # t(31) times the standard error below the limit
    one = replace(shape, runs=1)
    losses = pool(edge, spread, count=400)
    offset = pooled(*losses).mean - edge  # type: ignore[union-attr]
    half = chance(pool(edge - offset, spread, count=400), policy, one, 400)
    assert 0.35 < half < 0.65
    assert chance(pool(edge - offset, spread, count=400), policy, shape, 400) < half


def test_a_larger_loss_is_never_accepted_more_often(pool: MakePool, policy: Policy, shape: Shape) -> None:
    chances = [chance(pool(mean, 0.03), policy, shape) for mean in (0.06, 0.08, 0.085, 0.09, 0.1)]
    assert chances == sorted(chances, reverse=True) and chances[0] > chances[-1]


def test_more_runs_are_harder(pool: MakePool, policy: Policy, shape: Shape) -> None:
    edge = pool(0.088, 0.03)
    one, five = (chance(edge, policy, replace(shape, runs=runs)) for runs in (1, 5))
    assert five < one


def test_a_broken_window_is_counted_against_it(pool: MakePool, policy: Policy, shape: Shape) -> None:
    losses = pool(0.0, broken=True)
    assert chance(losses, policy, shape) < 0.5
    assert pooled(*losses) is None


def test_runs_below_the_floors_of_the_policy_never_pass(pool: MakePool, policy: Policy, shape: Shape) -> None:
    assert chance(pool(0.0), policy, replace(shape, preview=4, final=4)) == 0.0
    assert chance(pool(0.0), policy, replace(shape, tokens_available=10**7)) == 0.0


def test_drift_alone_fails_a_run(pool: MakePool, policy: Policy, shape: Shape) -> None:
    subject, baseline = pool(0.0, 0.001)
    shifted = tuple(
        w.model_copy(update={"nll_sum": w.nll_sum + (0.07 if w.arm == "final" else 0.0) * w.predicted_tokens})
        for w in subject[0].windows
    )
    drifting = judge(subject[0].model_copy(update={"windows": shifted}), baseline[0], policy, shape)
    assert drifting.outcome == "accept" and not passes(drifting)


def test_draws_are_repeatable(pool: MakePool, policy: Policy, shape: Shape) -> None:
    losses = pool(0.085, 0.03)
    assert acceptance(*losses, policy, shape, resamples=50) == acceptance(*losses, policy, shape, resamples=50)


def test_sets_of_windows_are_taken_together(pool: MakePool, policy: Policy, shape: Shape) -> None:
    (subject,), (baseline,) = pool(0.0)
    halves = [
        [side.model_copy(update={"windows": side.windows[part]}) for part in (slice(0, 32), slice(32, 64))]
        for side in (subject, baseline)
    ]
    assert chance(halves, policy, shape) == chance(([subject], [baseline]), policy, shape)
    assert pooled(*halves) == pooled([subject], [baseline])


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.308497),  # 1 - 0.025^(1/10)
        (10, 10, 0.691503, 1.0),
        (2000, 2000, 0.998157, 1.0),
        (5, 10, 0.187086, 0.812914),  # Clopper and Pearson's own table
    ],
)
def test_exact_interval(hits: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(hits, trials) == pytest.approx((low, high), abs=1e-6)


def test_some_failures_are_allowed_and_many_are_not() -> None:
    assert clopper_pearson(1990, 2000)[0] >= REQUIRED > clopper_pearson(1985, 2000)[0]


def test_the_order_of_windows_does_not_matter(pool: MakePool, policy: Policy, shape: Shape) -> None:
    losses = pool(0.085, 0.03)
    turned = [[side.model_copy(update={"windows": side.windows[::-1]}) for side in sides] for sides in losses]
    assert chance(turned, policy, shape) == chance(losses, policy, shape)

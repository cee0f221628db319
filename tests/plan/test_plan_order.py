"""Lanes and weights: a strict order, whatever the lane, the type and the place in the list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evpack.errors import BadInput
from evpack.plan.lanes import LANES, lane_of
from evpack.plan.model import StepType
from evpack.plan.order import BAND, BASE, CRITICAL, ORDERS, SIZE_BOOST, priority, sort_models

MAX_MAP_LENGTH = 20_000
CLOSING = (StepType.COMPILE_VERDICT, StepType.BUILD_PACK, StepType.VERIFY_PACK)

lanes = st.sampled_from(LANES)
types = st.sampled_from(list(BASE))
indexes = st.integers(0, MAX_MAP_LENGTH - 1)
orders = st.sampled_from(ORDERS)
tasks = st.one_of(
    st.tuples(types, lanes.map(lambda lane: lane.id), indexes),
    st.tuples(st.sampled_from(CLOSING), st.none(), st.just(0)),
)


def test_lanes_cover_every_count_and_class() -> None:
    assert len({lane.id for lane in LANES}) == len(LANES) == 20
    assert [lane.id for lane in LANES[:6]] == ["cpu_s", "gpu1_s", "gpu2_s", "gpu4_s", "gpu8_s", "cpu_m"]
    assert all(
        (lane.pool, lane.pool_slots) == (("gpu", lane.devices) if lane.devices else ("cpu", 1)) for lane in LANES
    )


@pytest.mark.parametrize(
    ("devices", "weights", "lane"),
    [
        (0, 0.3, "cpu_s"),
        (0, 140, "cpu_x"),
        (1, 14, "gpu1_s"),
        (1, 30, "gpu1_m"),
        (2, 69.9, "gpu2_m"),
        (3, 90, "gpu4_l"),
        (5, 144, "gpu8_x"),
    ],
)
def test_lane_of_a_model(devices: int, weights: float, lane: str) -> None:
    assert lane_of(devices, weights).id == lane


def test_no_lane_is_wide_enough() -> None:
    with pytest.raises(BadInput, match="9 devices"):
        lane_of(9, 600)


@given(tasks, tasks, orders)
def test_different_tasks_have_different_weights(a: Any, b: Any, order: str) -> None:
    assume(a != b)
    assert priority(*a, order) != priority(*b, order)


@given(tasks, orders)
def test_weights_fit_a_positive_32_bit_integer(task: Any, order: str) -> None:
    assert 0 < priority(*task, order) < 2**31


@given(types, lanes, indexes, indexes, orders)
def test_within_a_list_the_order_is_the_lists(type_: StepType, lane: Any, a: int, b: int, order: str) -> None:
    assume(a < b)
    assert priority(type_, lane.id, a, order) > priority(type_, lane.id, b, order)


@given(types, types, lanes, lanes, indexes, indexes)
def test_the_score_comes_before_the_place_in_the_list(
    a: StepType, b: StepType, la: Any, lb: Any, i: int, j: int
) -> None:
    def score(type_: StepType, lane: Any) -> int:
        return BASE[type_] + CRITICAL.get(type_, 0) + SIZE_BOOST[lane.size_class]

    assume(score(a, la) > score(b, lb))
    assert priority(a, la.id, i) > priority(b, lb.id, j)


@given(lanes, indexes, indexes, orders)
def test_within_a_lane_a_step_comes_before_what_it_unblocks(lane: Any, i: int, j: int, order: str) -> None:
    chain = (StepType.SETUP_BASELINE, StepType.CALIBRATE, StepType.DERIVE_PRESET, StepType.EVALUATE, StepType.CREATE)
    weights = [priority(type_, lane.id, i if n % 2 else j, order) for n, type_ in enumerate(chain)]
    assert weights == sorted(weights, reverse=True)


def test_large_first_turns_the_lanes_round() -> None:
    for type_ in BASE:
        weights = [priority(type_, lane.id, 0, "large_first") for lane in LANES]
        assert weights == sorted(weights)


def test_small_lanes_come_first_for_the_same_type() -> None:
    for type_ in BASE:
        weights = [priority(type_, lane.id, 0) for lane in LANES]
        assert weights == sorted(weights, reverse=True)


def test_closing_steps_pass_everything() -> None:
    highest = max(priority(type_, lane.id, -1) for type_ in BASE for lane in LANES)
    assert highest < priority(CLOSING[0], None, -1) < priority(CLOSING[1], None, -1) < priority(CLOSING[2], None, -1)


def test_an_unexpanded_instance_counts_as_the_first() -> None:
    assert priority(StepType.CREATE, "cpu_s", -1) == priority(StepType.CREATE, "cpu_s", 0)
    assert BAND > MAX_MAP_LENGTH


def test_unknown_lane() -> None:
    with pytest.raises(KeyError):
        priority(StepType.CREATE, "tpu_s", 0)


@given(st.lists(st.tuples(st.floats(0.1, 200), st.text(max_size=3)), unique=True))
def test_models_are_sorted_by_weight_then_name(models: list[tuple[float, str]]) -> None:
    def ordered(order: str, items: list[tuple[float, str]]) -> list[tuple[float, str]]:
        return sort_models(items, order, lambda model: model[0], lambda model: model[1])

    small = ordered("small_first", models)
    assert small == sorted(models) == ordered("small_first", models[::-1])
    assert [m[0] for m in ordered("large_first", models)] == [m[0] for m in small][::-1]

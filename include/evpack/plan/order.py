"""The order of a campaign: of models within a lane, and the weight of a task across lanes.

Airflow runs the heaviest waiting task first; equal weights go by logical date. A weight packs three things, most
significant first: a score, the lane's place in `LANES`, the place in the mapped list. The score is the reference's
base priority with its boosts, without its clamp at 100 (which made most tasks equal). ``large_first`` turns the size
boost and the order of lanes round; what must come first within a model stays first. Every boost of the reference and
what gives it here: docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from evpack.plan.lanes import LANES, plain_id
from evpack.plan.model import CLOSING, StepType

T = TypeVar("T")

SMALL_FIRST = "small_first"
LARGE_FIRST = "large_first"
ORDERS = (SMALL_FIRST, LARGE_FIRST)

BAND = 1 << 15
"""Weights per (type, lane): more than the 20,000 instances that `[core] max_map_length` allows."""

BASE = {
    StepType.SETUP_BASELINE: 90,
    StepType.CALIBRATE: 85,
    StepType.DERIVE_PRESET: 75,
    StepType.EVALUATE: 70,
    StepType.CREATE: 65,
}
CRITICAL = {StepType.SETUP_BASELINE: 50, StepType.CALIBRATE: 20}
SIZE_BOOST = {"s": 30, "m": 20, "l": 10, "x": 0}

_TYPES = tuple(BASE)


def _bands(order: str) -> dict[tuple[StepType, str], int]:
    """The rank of each (type, lane id or ""), lightest 0. Equal scores: the first lane, then the earlier type."""
    sign = 1 if order == SMALL_FIRST else -1
    lanes = {lane.id: sign * index for index, lane in enumerate(LANES)}
    boosts = dict(zip(SIZE_BOOST, list(SIZE_BOOST.values())[::sign], strict=True))
    pairs = [(type_, lane) for type_ in BASE for lane in LANES]
    pairs.sort(
        key=lambda pair: (
            BASE[pair[0]] + CRITICAL.get(pair[0], 0) + boosts[pair[1].size_class],
            -lanes[pair[1].id],
            -_TYPES.index(pair[0]),
        )
    )
    # Closing steps are few, short and last of their run: they pass everything that waits of later runs.
    keys = [(type_, lane.id) for type_, lane in pairs] + [(type_, "") for type_ in CLOSING]
    return {key: rank for rank, key in enumerate(keys)}


_RANKS = {order: _bands(order) for order in ORDERS}


def priority(type_: StepType, lane: str | None, map_index: int, order: str = SMALL_FIRST) -> int:
    """The weight of a task, a positive 32-bit integer; unequal for unequal arguments within a run.

    Args:
        lane: lane id, None for campaign-level steps. Hosts have pools of their own, so their lanes have equal weights.
        map_index: place in the mapped list; Airflow's -1 (not expanded yet) counts as the first.
        order: one of `ORDERS`.

    Raises:
        KeyError: for a lane that is not in `LANES`, or an order that is none.
    """
    rank = _RANKS[order][type_, plain_id(lane or "")]
    return rank * BAND + BAND - 1 - min(max(map_index, 0), BAND - 1)


def sort_models(models: Iterable[T], order: str, weights_gb: Callable[[T], float], name: Callable[[T], str]) -> list[T]:
    """Models by weight in one of the `ORDERS`; equal ones by name."""
    sign = 1.0 if order == SMALL_FIRST else -1.0
    return sorted(models, key=lambda model: (sign * weights_gb(model), name(model)))

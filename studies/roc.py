"""Where a threshold may lie: a statistic over changes that must pass, beside the same over damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from studies.table import Row


@dataclass(frozen=True)
class Question:
    """A statistic, and which reports must stay below its threshold and which must exceed it."""

    name: str
    statistic: str
    key: str
    """Of the threshold in the tier data."""
    passes: Callable[[Row], bool]
    exceeds: Callable[[Row], bool]
    lower: bool = False
    """Whether damage makes the statistic small instead of large."""


def curve(question: Question, rows: Iterable[Row], threshold: float | None) -> dict[str, Any]:
    """Both distributions, area under the curve, the gap, and rates at the threshold in force.

    A report without the statistic (its model could not be run) enters neither side.
    """
    found = [(row, row.statistics.get(question.statistic)) for row in rows]
    low, high = (
        sorted(
            (_turned(value, question), row.model, _class(row))
            for row, value in found
            if value is not None and side(row)
        )
        for side in (question.passes, question.exceeds)
    )
    below, above = [value for value, *_ in low], [value for value, *_ in high]
    cut = None if threshold is None else _turned(threshold, question)
    gap = [below[-1], above[0]] if below and above else None
    return {
        "name": question.name,
        "statistic": question.statistic,
        "key": question.key,
        "turned": "reciprocal" if question.lower else None,
        "must_pass": _groups(low),
        "must_exceed": _groups(high),
        "auc": _area(below, above),
        "gap": gap,
        "middle_of_gap": math.sqrt(gap[0] * gap[1]) if gap and 0 < gap[0] < gap[1] else None,
        "threshold": cut,
        "alarms": None if cut is None else sum(value > cut for value in below),
        "hits": None if cut is None else sum(value > cut for value in above),
        "points": _points(below, above),
    }


def _turned(value: float, question: Question) -> float:
    return 1.0 / max(value, 1e-12) if question.lower else value


def _class(row: Row) -> str:
    return row.kind if row.kind in ("noop", "mild") else f"{row.kind} {row.subject.family}"


def _groups(side: Sequence[tuple[float, str, str]]) -> list[dict[str, Any]]:
    """Least, middle and largest value of each class of each model."""
    groups: dict[tuple[str, str], list[float]] = {}
    for value, model, kind in side:
        groups.setdefault((model, kind), []).append(value)
    return [
        {"model": model, "class": kind, "n": len(v), "least": v[0], "median": v[len(v) // 2], "most": v[-1]}
        for (model, kind), v in sorted(groups.items())
    ]


def _area(below: Sequence[float], above: Sequence[float]) -> float | None:
    """Probability that damage exceeds what must pass, ties counting half (Mann and Whitney)."""
    if not below or not above:
        return None
    from bisect import bisect_left, bisect_right

    wins = sum(bisect_left(below, value) + bisect_right(below, value) for value in above) / 2
    return wins / (len(below) * len(above))


def _points(below: Sequence[float], above: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of the curve: rate of false alarms, rate of detection."""
    from bisect import bisect_right

    found = {(0.0, 0.0), (1.0, 1.0)}
    for cut in {*below, *above}:
        x = 1 - bisect_right(below, cut) / len(below) if below else 0.0
        y = 1 - bisect_right(above, cut) / len(above) if above else 0.0
        found.add((round(x, 6), round(y, 6)))
    points = sorted(found)
    corners = [
        here
        for before, here, after in zip(points, points[1:], points[2:], strict=False)
        if not (before[0] == here[0] == after[0] or before[1] == here[1] == after[1])
    ]
    return [points[0], *corners, points[-1]]

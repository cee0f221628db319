"""Plots as rows of text with a strip each: they bend to the width of a page, print, and need neither script nor image.

Colour never carries meaning alone: shape, position or a number says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_WIDEST = math.log(4)
_WIDEST_BY_LIMIT = 3.2
"""Half-width beyond which a forest plot is cut and a point is drawn as an arrow at its edge: a ratio of 4, or so many
times the wider limit; intervals near the limits must stay visible beside a ruined model."""
_SMALLEST = 1e-4
"""Left end of an axis of magnitudes: what is smaller is drawn there."""


@dataclass(frozen=True)
class Line:
    """One ratio with its interval."""

    label: str
    ratio: float | None
    low: float | None
    high: float | None
    kind: str
    """accept, reject, inconclusive or shown."""


@dataclass(frozen=True)
class Level:
    """One magnitude; infinite or absent ones are said to be not finite."""

    label: str
    value: float | None
    kind: str = "shown"
    """accept, reject or shown."""


def forest(lines: Sequence[Line], limits: tuple[float, float] | None = None) -> Markup:
    """Ratios on a logarithmic axis with their intervals, a line at 1 and dashed lines at the limits."""
    shown = [v for line in lines for v in (line.ratio, line.low, line.high) if v is not None and v > 0]
    reach = max((abs(math.log(v)) for v in (*shown, *(limits or ()))), default=0.1)
    widest = max((_WIDEST_BY_LIMIT * abs(math.log(limit)) for limit in limits or ()), default=_WIDEST)
    reach = min(max(reach * 1.1, 0.01), widest)

    def place(ratio: float) -> float:
        at = math.log(ratio) if ratio > 0 else -reach
        return 50 + 50 * max(-reach, min(reach, at)) / reach

    marks = _mark(50, "one") + "".join(_mark(place(limit), "limit") for limit in limits or ())
    rows = [_row(line.label, marks + _estimate(line, place, reach), *_figures(line)) for line in lines]
    digits = 3 if reach > 0.05 else 5
    ticks = [(place(math.exp(t)), f"{math.exp(t):.{digits}g}") for t in (-reach * 0.9, 0.0, reach * 0.9)]
    return _plot("ratios with 95 % intervals", rows, ticks)


def levels(values: Sequence[Level], limits: Sequence[float]) -> Markup:
    """Magnitudes as bars on a logarithmic axis, dashed lines at the limits."""
    finite = [v.value for v in values if v.value is not None and math.isfinite(v.value)]
    high = math.log10(max([*finite, *limits, 10 * _SMALLEST])) + 0.1
    low = math.log10(_SMALLEST)

    def place(value: float) -> float:
        return 100 * (max(math.log10(max(value, _SMALLEST)), low) - low) / (high - low)

    marks = "".join(_mark(place(limit), "limit") for limit in limits)
    rows = []
    for one in values:
        if one.value is None or not math.isfinite(one.value):
            rows.append(_row(one.label, marks, "not finite", "reject"))
            continue
        rows.append(_row(one.label, marks + _bar(0.0, place(one.value), one.kind), f"{one.value:.3g}", one.kind))
    ticks = [(place(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1)]
    return _plot("magnitudes", rows, ticks)


def bars(values: Sequence[tuple[str, float | None]], limit: float | None) -> Markup:
    """Signed bars around zero, in the order given; dashed lines at plus and minus the limit."""
    finite = [abs(value) for _, value in values if value is not None]
    reach = max([*finite, limit or 0.0, 1e-9]) * 1.1

    def place(value: float) -> float:
        return 50 + 50 * value / reach

    marks = _mark(50, "one") + "".join(_mark(place(sign * limit), "limit") for sign in (-1, 1) if limit)
    rows = []
    for name, value in values:
        if value is None:
            rows.append(_row(name, marks, "not finite", "reject"))
            continue
        kind = "shown" if limit is None else "reject" if abs(value) > limit else "accept"
        start, end = sorted((50.0, place(value)))
        rows.append(_row(name, marks + _bar(start, end, kind), f"{value:+.4g}", kind))
    return _plot("change by module", rows, ())


def _estimate(line: Line, at: Callable[[float], float], reach: float) -> str:
    if line.ratio is None:
        return '<i class="sign reject" style="left:98%">✗</i>'
    parts = []
    if line.low is not None and line.high is not None:
        left, right = at(line.low), at(line.high)
        parts.append(f'<i class="span {line.kind}" style="left:{left:.2f}%;width:{max(right - left, 0):.2f}%"></i>')
    if line.ratio <= 0 or abs(math.log(line.ratio)) > reach:
        arrow = "▶" if line.ratio > 1 else "◀"
        parts.append(f'<i class="sign {line.kind}" style="left:{at(line.ratio):.2f}%">{arrow}</i>')
    else:
        parts.append(f'<i class="point {line.kind}" style="left:{at(line.ratio):.2f}%"></i>')
    return "".join(parts)


def _figures(line: Line) -> tuple[str, str]:
    if line.ratio is None:
        return "not finite", "reject"
    if line.low is None or line.high is None:
        return f"{line.ratio:.4g}, no interval", line.kind
    return f"{line.ratio:.4g} [{line.low:.4g}, {line.high:.4g}]", line.kind


def _mark(at: float, kind: str) -> str:
    return f'<i class="mark {kind}" style="left:{at:.2f}%"></i>'


def _bar(start: float, end: float, kind: str) -> str:
    return f'<i class="bar {kind}" style="left:{start:.2f}%;width:{max(end - start, 0.3):.2f}%"></i>'


def _row(label: str, strip: str, figures: str, kind: str) -> str:
    from markupsafe import escape

    name = f'<span class="name">{escape(label)}</span>'
    return f'<div>{name}<span class="strip">{strip}</span><span class="figure {kind}">{escape(figures)}</span></div>'


def _plot(title: str, rows: Iterable[str], ticks: Iterable[tuple[float, str]]) -> Markup:
    from markupsafe import Markup

    axis = "".join(f'<i class="{_side(at)}" style="left:{at:.2f}%">{text}</i>' for at, text in ticks)
    last = f'<div><span class="name"></span><span class="axis">{axis}</span><span class="figure"></span></div>'
    body = "".join(rows) + (last if axis else "")
    # every text went through escape; the rest is numbers and names from this file
    return Markup(f'<div class="plot" role="group" aria-label="{title}">{body}</div>')  # noqa: S704


def _side(at: float) -> str:
    """Where a tick's text stands: over it, or inside at the ends of the axis."""
    return "start" if at < 4 else "end" if at > 96 else "middle"

"""Plots as inline SVG. Colour never carries meaning alone: shape, position or a number says the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_ROW = 20
"""Height of a row, px."""
_LABEL = 6.6
"""Width of a character of a label, px: an upper bound for 12 px system fonts."""
_PLOT = 380
"""Width of the plotted area, px."""
_FIGURES = 170
"""Room for the figures at the right, px."""
_WIDEST = math.log(4)
"""Half-width beyond which a plot is cut and a point at its edge is drawn as an arrow (ratio 4)."""


@dataclass(frozen=True)
class Line:
    """One ratio with its interval."""

    label: str
    ratio: float | None
    low: float | None
    high: float | None
    kind: str
    """accept, reject or inconclusive."""


def forest(lines: Sequence[Line], limits: tuple[float, float] | None = None) -> Markup:
    """Ratios on a logarithmic axis with their intervals, a line at 1 and dashed lines at the limits."""
    left = _left(line.label for line in lines)
    shown = [v for line in lines for v in (line.ratio, line.low, line.high) if v is not None and v > 0]
    reach = max((abs(math.log(v)) for v in (*shown, *(limits or ()))), default=0.1)
    reach = min(max(reach * 1.1, 0.01), _WIDEST)
    height = len(lines) * _ROW + 34

    def x(ratio: float) -> float:
        place = max(-reach, min(reach, math.log(ratio) if ratio > 0 else -reach))
        return round(left + _PLOT * (place + reach) / (2 * reach), 1)

    parts = [_rule(x(1.0), height, "one")]
    parts += [_rule(x(limit), height, "limit") for limit in limits or ()]
    for index, line in enumerate(lines):
        parts.append(_forest_row(line, index * _ROW + _ROW / 2, left, x, reach))
    ticks = [-reach * 0.9, -reach * 0.45, 0.0, reach * 0.45, reach * 0.9]
    digits = 3 if reach > 0.05 else 5
    for tick in ticks:
        parts.append(_text(x(math.exp(tick)), height - 12, f"{math.exp(tick):.{digits}g}", "soft", "middle"))
    return _svg(left + _PLOT + _FIGURES, height, parts, "ratios with 95 % intervals")


def _forest_row(line: Line, y: float, left: float, x: Callable[[float], float], reach: float) -> str:
    parts = [_text(left - 8, y + 4, line.label, "", "end")]
    right = left + _PLOT + 8
    if line.ratio is None:
        parts.append(_text(left + _PLOT - 6, y + 4, "✗", "reject", "middle"))
        return "".join([*parts, _text(right, y + 4, "not finite", "reject")])
    if line.low is not None and line.high is not None:
        parts.append(
            f'<line class="{line.kind}" x1="{x(line.low)}" x2="{x(line.high)}" y1="{y}" y2="{y}" stroke-width="2"/>'
        )
        figures = f"{line.ratio:.4g} [{line.low:.4g}, {line.high:.4g}]"
    else:
        figures = f"{line.ratio:.4g}, no interval"
    if abs(math.log(line.ratio)) > reach if line.ratio > 0 else True:
        arrow = "▶" if line.ratio > 1 else "◀"
        parts.append(_text(x(line.ratio), y + 4, arrow, line.kind, "middle"))
    else:
        parts.append(f'<circle class="{line.kind}" cx="{x(line.ratio)}" cy="{y}" r="3.5"/>')
    return "".join([*parts, _text(right, y + 4, figures, "soft")])


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], tuple[int, int]]) -> Markup:
    """A grid of ``fired/total``; darker means a larger share, and the figures stand in the cells."""
    left, cell = _left(rows), 64
    top = max((len(name) for name in columns), default=0) * 5 + 16
    parts = []
    for index, name in enumerate(columns):
        x = left + index * cell + cell / 2
        parts.append(f'<text x="{x}" y="{top - 8}" transform="rotate(-40 {x} {top - 8})">{_escape(name)}</text>')
    for row, name in enumerate(rows):
        y = top + row * _ROW
        parts.append(_text(left - 8, y + 14, name, "", "end"))
        for column, other in enumerate(columns):
            fired, total = values.get((name, other), (0, 0))
            share = fired / total if total else 0.0
            fill = (
                f"rgb({255 - int(20 * share)},{255 - int(105 * share)},{255 - int(115 * share)})" if total else "#fff"
            )
            x = left + column * cell
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{_ROW - 2}" fill="{fill}" stroke="#d0d0d0"/>'
            )
            parts.append(_text(x + cell / 2 - 1, y + 13, f"{fired}/{total}" if total else "-", "", "middle"))
    width = left + len(columns) * cell + top
    return _svg(width, top + len(rows) * _ROW + 6, parts, "share of runs in which each guard fired")


def bars(values: Sequence[tuple[str, float | None]], limit: float | None) -> Markup:
    """Signed bars around zero, widest first as given; dashed lines at plus and minus the limit."""
    left = _left(name for name, _ in values)
    finite = [abs(value) for _, value in values if value is not None]
    reach = max([*finite, limit or 0.0, 1e-9]) * 1.1
    height = len(values) * _ROW + 8
    middle = left + _PLOT / 2

    def x(value: float) -> float:
        return round(middle + _PLOT / 2 * value / reach, 1)

    parts = [_rule(middle, height, "one")]
    parts += [_rule(x(sign * limit), height, "limit") for sign in (-1, 1) if limit]
    for index, (name, value) in enumerate(values):
        y = index * _ROW + 3
        parts.append(_text(left - 8, y + 11, name, "", "end"))
        if value is None:
            parts.append(_text(left + _PLOT + 8, y + 11, "not finite", "reject"))
            continue
        kind = "reject" if limit is not None and abs(value) > limit else "accept"
        start, width = min(middle, x(value)), max(abs(x(value) - middle), 1.0)
        parts.append(
            f'<rect class="{kind}" x="{start}" y="{y}" width="{width:.1f}" height="{_ROW - 8}" stroke="none"/>'
        )
        parts.append(_text(left + _PLOT + 8, y + 11, f"{value:+.4g}", "soft"))
    return _svg(left + _PLOT + _FIGURES, height, parts, "change by module")


def _left(labels: Iterable[str]) -> float:
    return min(max((len(label) for label in labels), default=0), 60) * _LABEL + 16


def _rule(x: float, height: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="0" y2="{height - 26}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    label = text if len(text) <= 60 else "…" + text[-59:]
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{_escape(label)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> Markup:
    from markupsafe import Markup

    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    body = "".join(parts)
    # every text went through _escape; the rest is numbers and names from this file
    return Markup(f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{title}" {size}>{body}</svg>')  # noqa: S704


def _escape(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))

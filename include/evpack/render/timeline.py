"""The timeline of a campaign: what ran when on which device, as one SVG file that stands alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _WIDTH, _RIGHT = 150, 860, 20
_TOP = 26
_DEVICE_ROW, _CPU_ROW, _GAP = 22, 9, 14
_NARROWEST = 0.8
"""Width below which a bar would vanish, px."""
_DIGIT = 9
"""Width a bar needs to carry its model's number, px."""
_MOST_CPU_ROWS = 40
_TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
"""Seconds between two marks of the axis."""
_COLOURS = ("#3b6fb6", "#d1783c", "#4c9a6a", "#a8527e", "#7a6bb5", "#8a7444", "#3f96a3", "#777777")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.soft{fill:#666}.n{fill:#fff;font-size:11px;text-anchor:middle}"
    ".grid{stroke:#e2e2e2}.row{fill:#f5f5f5}.calibrate{stroke:#222;stroke-width:1.2}.failed{stroke:#c00;stroke-width:2;"
    "stroke-dasharray:3 2}"
)


@dataclass(frozen=True)
class Bar:
    """One attempt of a step."""

    step: str
    kind: str
    """The step's type."""
    model: str | None
    """Label of its model, None for a step of the campaign."""
    start: float
    """Seconds on any clock that all bars share."""
    end: float
    devices: tuple[str, ...] = ()
    """What it held; none for a step on the processor."""
    failed: bool = False


def timeline(bars: Sequence[Bar], devices: Sequence[str] = ()) -> str:
    """The SVG: a row per device, below them rows of processor slots as many as ran at once; hovering names a step.

    Each model has a colour and a number; `calibrate` has a dark rim, a failed attempt a dashed red one.

    Args:
        devices: rows to draw even when nothing held them.
    """
    begin = min((bar.start for bar in bars), default=0.0)
    length = max((bar.end for bar in bars), default=0.0) - begin or 1.0
    names = sorted({*devices, *(device for bar in bars for device in bar.devices)}, key=_natural)
    slots = _slots([bar for bar in bars if not bar.devices])
    models = list(dict.fromkeys(bar.model for bar in bars if bar.model))
    at_once = max(slots.values(), default=-1) + 1
    shown = min(at_once, _MOST_CPU_ROWS)
    cpu_top = _TOP + len(names) * _DEVICE_ROW + (_GAP if names else 0)
    bottom = cpu_top + shown * _CPU_ROW

    def x(moment: float) -> float:
        return round(_LEFT + _WIDTH * (moment - begin) / length, 1)

    parts = _axis(length, bottom, begin, x)
    parts += [_row(_TOP + index * _DEVICE_ROW, _DEVICE_ROW, name) for index, name in enumerate(names)]
    if shown:
        parts.append(_row(cpu_top, shown * _CPU_ROW, "processor"))
        parts.append(f'<text class="soft" x="{_LEFT - 8}" y="{bottom + 12}" text-anchor="end">{at_once} at once</text>')
    for bar in bars:
        left, width = x(bar.start), max(x(bar.end) - x(bar.start), _NARROWEST)
        number = models.index(bar.model) if bar.model else None
        places = [(_TOP + names.index(device) * _DEVICE_ROW, _DEVICE_ROW) for device in bar.devices]
        if not places and slots[id(bar)] < _MOST_CPU_ROWS:
            places = [(cpu_top + slots[id(bar)] * _CPU_ROW, _CPU_ROW)]
        parts += [_bar(bar, number, left, width, top, height) for top, height in places]
    parts += _legend(models, bottom + 26)
    height = bottom + 34 + 18 * ((len(models) + 2) // 3)
    size = f'viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" width="{_LEFT + _WIDTH + _RIGHT}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="timeline of the campaign" {size}>'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}<style>{_STYLE}</style>{background}{''.join(parts)}</svg>\n"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Numbers in a name sort as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _slots(bars: Sequence[Bar]) -> dict[int, int]:
    """A row for each bar, by identity: the first row that is free when it starts."""
    ends: list[float] = []
    rows = {}
    for bar in sorted(bars, key=lambda bar: (bar.start, bar.end)):
        row = next((index for index, end in enumerate(ends) if end <= bar.start), len(ends))
        ends[row : row + 1] = [bar.end]
        rows[id(bar)] = row
    return rows


def _axis(length: float, bottom: float, begin: float, x: Callable[[float], float]) -> list[str]:
    step = next((tick for tick in _TICKS if length / tick <= 10), _TICKS[-1])
    parts = []
    for count in range(int(length // step) + 1):
        place = x(begin + count * step)
        parts.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{_TOP - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{place}" y="14" text-anchor="middle">{_clock(count * step)}</text>')
    return parts


def _clock(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:g} h"


def _row(top: float, height: float, name: str) -> str:
    label = name if len(name) <= 20 else f"{name[:12]}…{name[-7:]}"
    return (
        f'<rect class="row" x="{_LEFT}" y="{top + 1}" width="{_WIDTH}" height="{height - 2}"/>'
        f'<text x="{_LEFT - 8}" y="{top + min(height / 2, 40) + 4}" text-anchor="end">{escape(label)}</text>'
    )


def _bar(bar: Bar, number: int | None, left: float, width: float, top: float, height: float) -> str:
    colour = _COLOURS[number % len(_COLOURS)] if number is not None else "#222"
    kind = f"{bar.kind} failed" if bar.failed else bar.kind
    rim = f' class="{escape(kind)}"' if bar.failed or bar.kind == "calibrate" else ""
    words = f"{bar.step}: {bar.end - bar.start:.1f} s{', failed' if bar.failed else ''}"
    rect = (
        f'<rect{rim} x="{left}" y="{top + 2}" width="{width:.1f}" height="{height - 3}" fill="{colour}">'
        f"<title>{escape(words)}</title></rect>"
    )
    if number is None or width < _DIGIT or height < _DEVICE_ROW:
        return rect
    return rect + f'<text class="n" x="{left + width / 2:.1f}" y="{top + height / 2 + 4}">{number + 1}</text>'


def _legend(models: Sequence[str], top: float) -> list[str]:
    parts = []
    for index, model in enumerate(models):
        x, y = _LEFT + index % 3 * 290, top + index // 3 * 18
        parts.append(f'<rect x="{x}" y="{y - 10}" width="14" height="12" fill="{_COLOURS[index % len(_COLOURS)]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{index + 1}: {escape(model)}</text>')
    return parts

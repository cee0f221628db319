"""Pictures of where thresholds lie, as small SVG files: a strip per class, and the curve beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_ROW, _LEFT, _WIDTH, _CURVE, _TOP = 17, 340, 330, 170, 26
_INK, _SOFT, _GOOD, _BAD = "#222", "#888", "#2b6cb0", "#c05621"


def picture(question: Mapping[str, Any]) -> str:
    """Ranges of a statistic by class on a logarithmic axis, the threshold, and the ROC curve."""
    classes = [(group, _GOOD, "circle") for group in question["must_pass"]]
    classes += [(group, _BAD, "diamond") for group in question["must_exceed"]]
    values = [g[key] for g, *_ in classes for key in ("least", "most") if g[key] > 0]
    low, high = math.log(max(min(values), 1e-6)), math.log(max(values) * 1.2)
    height = max(_TOP + _ROW * len(classes) + 34, _CURVE + _TOP + 40)

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * (math.log(max(value, math.exp(low))) - low) / (high - low), 1)

    parts = [_text(4, 15, question["name"], _INK, "start", bold=True)]
    for index, (group, colour, shape) in enumerate(classes):
        y = _TOP + _ROW * index + _ROW / 2
        parts.append(_text(4, y + 4, f"{group['model']}: {group['class']} ({group['n']})", _INK, "start"))
        parts.append(_line(x(group["least"]), y, x(group["most"]), y, colour, 3))
        parts += [_mark(x(group[key]), y, colour, shape) for key in ("least", "median", "most")]
    bottom = _TOP + _ROW * len(classes) + 4
    for power in range(math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1):
        parts.append(_line(x(10.0**power), _TOP, x(10.0**power), bottom, "#ddd", 1))
        parts.append(_text(x(10.0**power), bottom + 13, f"{10.0**power:g}", _SOFT, "middle"))
    if question["threshold"]:
        cut = x(question["threshold"])
        parts.append(_line(cut, _TOP - 4, cut, bottom, _INK, 1.5, dashed=True))
        parts.append(_text(cut, bottom + 26, f"threshold {question['threshold']:.4g}", _INK, "middle"))
    parts += _curve(question["points"], question["auc"])
    width = _LEFT + _WIDTH + _CURVE + 70
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _curve(points: Sequence[Sequence[float]], area: float | None) -> list[str]:
    left, top = _LEFT + _WIDTH + 45, _TOP

    def place(point: Sequence[float]) -> str:
        return f"{left + point[0] * _CURVE:.1f},{top + (1 - point[1]) * _CURVE:.1f}"

    corners: list[Sequence[float]] = []
    for point in points:
        if corners and point[0] > corners[-1][0]:
            corners.append((point[0], corners[-1][1]))
        corners.append(point)
    label = "" if area is None else f"area {area:.4f}"
    return [
        f'<rect x="{left}" y="{top}" width="{_CURVE}" height="{_CURVE}" fill="none" stroke="#ddd"/>',
        f'<polyline points="{" ".join(map(place, corners))}" fill="none" stroke="{_BAD}" stroke-width="2"/>',
        _text(left + _CURVE / 2, top + _CURVE + 14, "false alarms", _SOFT, "middle"),
        _text(left + _CURVE / 2, top + _CURVE + 28, label, _INK, "middle"),
        f'<text x="{left - 8}" y="{top + _CURVE / 2}" fill="{_SOFT}" text-anchor="middle" '
        f'transform="rotate(-90 {left - 8} {top + _CURVE / 2})">detected</text>',
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{width}"{dash}/>'


def _mark(x: float, y: float, colour: str, shape: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
    return f'<path d="M{x} {y - 4}L{x + 4} {y}L{x} {y + 4}L{x - 4} {y}Z" fill="{colour}"/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'

"""The page of a comparison of two packs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evpack.render.plots import Line, forest
from evpack.render.templating import interval, number, render

_MINUS = "\N{MINUS SIGN}"
"""No line breaks after it, as one may after a hyphen."""
_SECTIONS = ("models", "lanes", "source", "policy", "settings", "environment")


def render_diff(result: Mapping[str, Any]) -> str:
    """One HTML document.

    Args:
        result: the comparison as JSON (`pack.diff.compare`).
    """
    shifts = [cell for cell in result["cells"] if cell["shift"] and cell["shift"]["display_ci"]]
    lines = [_line(cell) for cell in shifts if None not in cell["shift"]["display_ci"]]
    return render(
        "diff.html.j2",
        old=result["old"],
        new=result["new"],
        same_evidence=result["same_evidence"],
        regressions=result["regressions"],
        rows=[_row(cell) for cell in result["cells"]],
        forest=forest(lines) if lines else None,
        sections=[(name.capitalize(), result[name]) for name in _SECTIONS],
    )


def _line(cell: Mapping[str, Any]) -> Line:
    shift = cell["shift"]
    kind = "reject" if cell["regressions"] else "accept"
    low, high = shift["display_ci"]
    return Line(f"{cell['model']} {cell['scenario']}", shift["ratio"], low, high, kind)


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
    shift = cell["shift"] or {"ratio": None, "display_ci": None, "windows": 0, "reason": "not in both"}
    known = shift["ratio"] is not None
    return {
        "model": cell["model"],
        "scenario": cell["scenario"],
        "old": cell["old"]["got"] if cell["old"] else "not evaluated",
        "new": cell["new"]["got"] if cell["new"] else "not evaluated",
        "shift": number(shift["ratio"]) if known else shift["reason"],
        "interval": interval(shift["display_ci"]) if known else "",
        "windows": shift["windows"],
        "known": known,
        "signals": " ".join([f"+{n}" for n in cell["signals_new"]] + [f"{_MINUS}{n}" for n in cell["signals_gone"]]),
    }

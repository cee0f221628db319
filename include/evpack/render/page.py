"""The page of a pack and the page of a report. Nothing reads them back; the verifier ignores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evpack.render.plots import Line, bars, forest, heat_map
from evpack.render.templating import interval, number, render

_MUST = {"must_pass": "pass", "must_fail": "be rejected", "must_detect": "be detected", "informational": "be shown"}
_MARKS = {"met": "✓", "not met": "✗", "missing": "?", "shown": "·"}
_NOTES = ("hysteresis_applied", "moe_observed")
"""Flags of a report that are neither good nor bad."""
_GUARDS = ("invariants", "spectral", "rmt", "variance")
_GATES = ("primary_metric", "drift", "overhead", "tail")


def render_pack(
    *,
    suite: str,
    level: str,
    signer: str | None,
    verdict: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    limits: tuple[float, float],
    guards: Sequence[str],
    links: Mapping[str, str],
    provenance: Sequence[tuple[str, Any]],
) -> str:
    """The page of a pack.

    Args:
        verdict: final_verdict.json.
        cells: entries of scenario_signal_summary.json, each with `state` and `got`.
        limits: least and greatest accepted ratio.
        guards: guards of the campaign's order.
        links: page of a report, relative to this page, by the report's path.
        provenance: name and value, in the order shown.
    """
    cells = sorted(cells, key=lambda cell: (_order(cell), cell["scenario"], cell["model"]))
    models = sorted({cell["model"] for cell in cells})
    lines = [_line(cell, run, len(models)) for cell in cells for run in cell["runs"] if run["problem"] is None]
    return render(
        "pack.html.j2",
        suite=suite,
        level=level,
        signer=signer,
        verdict=verdict,
        models=models,
        matrix=list(_matrix(cells)),
        limits=limits,
        forest=forest(lines, limits) if lines else None,
        heat=_heat(cells, guards) if lines else None,
        rows=[_row(cell, run, links) for cell in cells for run in cell["runs"]],
        provenance=provenance,
    )


def render_report(report: Mapping[str, Any]) -> str:
    """The page of one report.

    Args:
        report: evaluation.report.json, valid by its schema.
    """
    metric = report["primary_metric"]
    accepted = metric["acceptance_range"]
    limits = (accepted["min"], accepted["max_with_hysteresis"])
    pooled, kind = metric["pooled"], metric["outcome"]
    lines = [
        Line("pooled (gates)", pooled["ratio"], *_bounds(pooled["display_ci"]), kind),
        Line("final windows", metric["ratio_vs_baseline"], *_bounds(metric["display_ci"]), "shown"),
    ]
    figures = {key: number(metric[key]) for key in ("preview", "final", "baseline_preview", "baseline_final")} | {
        "ratio": number(pooled["ratio"]),
        "interval": interval(pooled["display_ci"]),
        "ratio_final": number(metric["ratio_vs_baseline"]),
        "interval_final": interval(metric["display_ci"]),
    }
    return render(
        "report.html.j2",
        meta=report["meta"],
        metric=metric,
        figures=figures,
        forest=forest(lines, limits),
        validation=sorted(report["validation"].items()),
        notes=_NOTES,
        guards=[_guard(name, report[name]) for name in _GUARDS],
        edit=sorted((key, value) for key, value in (report.get("edit") or {}).items() if not isinstance(value, dict)),
        provenance=[
            ("report", report["run_id"]),
            ("baseline", report["baseline_ref"]["checkpoint_digest"]),
            ("subject", report["subject_ref"]["checkpoint_digest"]),
            ("plan", report["meta"]["plan_digest"]),
            ("policy", f"tier {report['meta']['tier']}, profile {report['meta']['profile']}"),
            ("records", report["records"]["subject"]["sha256"]),
            ("baseline records", report["records"]["baseline"]["sha256"]),
        ],
    )


def _order(cell: Mapping[str, Any]) -> int:
    return list(_MUST).index(cell["strictness"])


def _matrix(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    models = sorted({cell["model"] for cell in cells})
    found = {(cell["scenario"], cell["model"]): cell for cell in cells}
    for scenario in dict.fromkeys(cell["scenario"] for cell in cells):
        row = [found.get((scenario, model)) for model in models]
        first = next(cell for cell in row if cell)
        yield {"scenario": scenario, "must": _MUST[first["strictness"]], "cells": [_cell(cell) for cell in row]}


def _cell(cell: Mapping[str, Any] | None) -> dict[str, str] | None:
    if cell is None:
        return None
    return {
        "class": cell["state"].replace(" ", "-"),
        "mark": _MARKS[cell["state"]],
        "got": cell["got"],
        "signals": ", ".join([*cell["hard_flips"], *cell["remediations"]]),
    }


def _line(cell: Mapping[str, Any], run: Mapping[str, Any], models: int) -> Line:
    label = f"{cell['scenario']} {run['run']}" if models == 1 else f"{cell['model']} {cell['scenario']} {run['run']}"
    return Line(label, run["ratio"], *_bounds(run["display_ci"]), run["outcome"])


def _bounds(display: Sequence[float] | None) -> tuple[float | None, float | None]:
    return (None, None) if display is None else (display[0], display[1])


def _heat(cells: Sequence[Mapping[str, Any]], guards: Sequence[str]) -> Any:
    """Shares of runs by scenario; a run's reasons name the gate that flipped (``<gate>_fail``)."""
    rows = [*dict.fromkeys(guards), *_GATES]
    columns = list(dict.fromkeys(cell["scenario"] for cell in cells))
    values: dict[tuple[str, str], tuple[int, int]] = {}
    for cell in cells:
        for run in cell["runs"]:
            if run["problem"] is not None:
                continue
            for guard in rows:
                fired, total = values.get((guard, cell["scenario"]), (0, 0))
                hit = any(reason.startswith(f"{guard}_") for reason in run["reasons"])
                values[guard, cell["scenario"]] = (fired + hit, total + 1)
    shown = [
        guard for guard in rows if guard in guards or any(values[guard, c][0] for c in columns if (guard, c) in values)
    ]
    return heat_map(shown, columns, values)


def _row(cell: Mapping[str, Any], run: Mapping[str, Any], links: Mapping[str, str]) -> dict[str, Any]:
    usable = run["problem"] is None
    return {
        "model": cell["model"],
        "scenario": cell["scenario"],
        "link": links.get(run["path"]),
        "run": run["run"],
        "ratio": number(run["ratio"]) if usable else "",
        "interval": interval(run["display_ci"]) if usable else "",
        "outcome": run["outcome"] or "",
        "problem": run["problem"] or "",
        "reasons": ", ".join(run["reasons"]),
    }


def _guard(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """A guard for the page; spectral and RMT with the modules that moved most."""
    if not block.get("evaluated"):
        return {"name": name, "status": "not run", "reason": block.get("reason"), "failures": (), "plot": None}
    shown = block.get("top_violations") if name == "spectral" else block.get("top_modules") if name == "rmt" else None
    moved = [(str(entry["module"]), entry["log_ratio"]) for entry in shown or []]
    caption = {
        "spectral": "Ln of the largest singular value over the baseline's, matrices that moved most",
        "rmt": "Ln of the edge risk over the baseline's, modules that moved most",
    }
    return {
        "name": name,
        "status": block["status"],
        "reason": None,
        "failures": [_failure(entry) for entry in block.get("failures", [])],
        "plot": bars(moved, None) if moved else None,
        "caption": caption.get(name),
    }


def _failure(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    return f"{entry.get('type', 'finding')}: {entry.get('message', '')}"

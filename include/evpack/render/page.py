"""The page of a pack and the page of a report. Of all they show the verifier looks at the verdict alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from evpack.render.guards import guard_section, statistics
from evpack.render.plots import Line, forest
from evpack.render.templating import interval, number, render

_MUST = {"must_pass": "pass", "must_fail": "be rejected", "must_detect": "be detected", "informational": "be shown"}
_MARKS = {"met": "✓", "not met": "✗", "missing": "?", "shown": "·"}
_NOTES = ("hysteresis_applied", "moe_observed")
"""Flags of a report that are neither good nor bad."""
_GUARDS = ("invariants", "spectral", "rmt", "variance")
_REASONS = {"primary_metric": ("primary_metric_", "accuracy_")}
"""How the reasons of a run begin that say a gate has flipped, where not with its name alone."""
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
    figures: Sequence[Mapping[str, Any]] = (),
    remediated: Mapping[str, Collection[str]],
) -> str:
    """The page of a pack.

    Args:
        verdict: final_verdict.json.
        cells: entries of scenario_signal_summary.json, each with `state` and `got`.
        limits: least and greatest accepted ratio.
        guards: guards of the campaign's order.
        links: page of a report, relative to this page, by the report's path.
        provenance: name and value, in the order shown.
        figures: `guard_figures` of each report.
        remediated: paths of the reports that a guard corrected or capped something in, by guard.
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
        levels=list(statistics(cells, figures, len(models))),
        heat=_heat(cells, guards, remediated) if lines else None,
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
    cap = report["resolved_policy"]["spectral"]["ratio_cap"]
    return render(
        "report.html.j2",
        meta=report["meta"],
        metric=metric,
        figures=figures,
        secondary=[_secondary(metric) for metric in report.get("secondary_metrics", ())],
        forest=forest(lines, limits),
        validation=sorted(report["validation"].items()),
        notes=_NOTES,
        guards=[guard_section(name, report[name], cap) for name in _GUARDS],
        edit=sorted((key, _short(value)) for key, value in (report.get("edit") or {}).items()),
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


def _secondary(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **metric,
        "delta": number(metric["delta_pp"]),
        "interval": interval(metric["ci"]),
        "least": number(metric["delta_min_pp_with_hysteresis"]),
    }


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
        "signals": ", ".join(dict.fromkeys([*cell["hard_flips"], *cell["remediations"]])),
    }


def _line(cell: Mapping[str, Any], run: Mapping[str, Any], models: int) -> Line:
    label = f"{cell['scenario']} {run['run']}" if models == 1 else f"{cell['model']} {cell['scenario']} {run['run']}"
    return Line(label, run["ratio"], *_bounds(run["display_ci"]), run["outcome"])


def _bounds(display: Sequence[float] | None) -> tuple[float | None, float | None]:
    return (None, None) if display is None else (display[0], display[1])


def _heat(
    cells: Sequence[Mapping[str, Any]], guards: Sequence[str], remediated: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Shares of runs by scenario in which a gate flipped or a guard acted, as guard_signal_summary.json counts them."""
    gates = [*dict.fromkeys(guards), *_GATES]
    counts: dict[str, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for cell in cells:
        fired = counts.setdefault(cell["scenario"], dict.fromkeys(gates, 0))
        for run in cell["runs"]:
            if run["problem"] is not None:
                continue
            totals[cell["scenario"]] = totals.get(cell["scenario"], 0) + 1
            for gate in gates:
                flipped = any(reason.startswith(_REASONS.get(gate, f"{gate}_")) for reason in run["reasons"])
                fired[gate] += flipped or run["path"] in remediated.get(gate, ())
    columns = [gate for gate in gates if gate in guards or any(fired[gate] for fired in counts.values())]
    rows = [
        {"name": name, "cells": [_share(fired[gate], totals.get(name, 0)) for gate in columns]}
        for name, fired in counts.items()
    ]
    return {"columns": [gate.replace("_", " ") for gate in columns], "rows": rows}


def _share(fired: int, total: int) -> dict[str, str]:
    if not total:
        return {"class": "none", "text": "-"}
    share = fired / total
    return {
        "class": "none" if not fired else "all" if fired == total else "most" if share >= 0.5 else "some",
        "text": f"{fired}/{total}",
    }


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


def _short(value: Any) -> str:
    """A value for people; what is nested stands in the report itself."""
    if isinstance(value, Mapping | list):
        return f"{len(value)} entries, see the report"
    return str(value)

"""What pages show of guards: a statistic per report on the page of a pack, findings and modules on a report's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evpack.render.plots import Level, bars, levels
from evpack.render.templating import number

_WHERE = {"model": "model_name", "scenario": "scenario", "run": "run"}
_NOT_FINITE = ("non_finite_matrix", "edge_risk_lost")
"""Findings that something has no finite figure."""
_STATISTICS = {
    "spectral": (
        "How far weights moved",
        "Largest change of a matrix: |ln| of its largest singular value over the baseline's, logarithmic scale. Dashed "
        "lines: from the first on a matrix counts as capped, from the second on it is fatal by itself.",
    ),
    "rmt": (
        "How far activations moved",
        "Change of the modules' edge risk against the baseline on the same windows: the larger of the guard's two "
        "statistics, relative to its limit, logarithmic scale. Dashed line: the limit.",
    ),
}


def statistics(
    cells: Sequence[Mapping[str, Any]], figures: Sequence[Mapping[str, Any]], models: int
) -> Iterator[dict[str, Any]]:
    """The statistic of the spectral and of the RMT guard, report by report, in the order of the cells."""
    order = {(cell["model"], cell["scenario"]): index for index, cell in enumerate(cells)}
    ordered = sorted(figures, key=lambda found: (order.get((found["model"], found["scenario"]), 0), found["run"]))
    for guard, (title, text) in _STATISTICS.items():
        found = [(one, one[guard]) for one in ordered if guard in one]
        if found:
            label = "{scenario} {run}" if models == 1 else "{model} {scenario} {run}"
            values = [Level(label.format(**one), value["value"], value["kind"]) for one, value in found]
            limits = sorted({limit for _, value in found for limit in value["limits"]})
            yield {"title": title, "text": text, "plot": levels(values, limits)}


def guard_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of a pack shows of one report's guards: statistic, limits and whether it passed, where they ran.

    Args:
        report: evaluation.report.json, valid by its schema.
    """
    found: dict[str, Any] = {key: report["meta"][name] for key, name in _WHERE.items()}
    spectral, rmt, policy = report["spectral"], report["rmt"], report["resolved_policy"]
    if spectral.get("summary"):
        limits = [policy["spectral"]["ratio_cap"], policy["spectral"]["ratio_fatal"]]
        found["spectral"] = _figure(spectral["summary"]["max_abs_log_ratio"], limits, spectral)
    if rmt.get("summary"):
        found["rmt"] = _figure(_of_its_limit(rmt), [1.0], rmt)
    return found


def _of_its_limit(rmt: Mapping[str, Any]) -> float | None:
    """The larger of the RMT guard's two statistics, each as a share of its limit."""
    if rmt["rms_log_ratio"] is None:
        return None
    share: float = max(rmt["trimmed_mean_log_ratio"] / rmt["epsilon"], rmt["rms_log_ratio"] / rmt["epsilon_rms"])
    return share


def _figure(value: float | None, limits: list[float], block: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"pass": "accept", "warn": "inconclusive"}
    if any(entry["type"] in _NOT_FINITE for entry in block["failures"]):
        value = None  # the figure is of what is left
    return {"value": value, "limits": limits, "kind": kinds.get(block["status"], "reject")}


def guard_section(name: str, block: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """A guard for the page; spectral and RMT with the modules that moved most."""
    nothing: dict[str, Any] = {"name": name, "reason": None, "failures": (), "figure": None, "plot": None}
    if not block.get("evaluated"):
        return nothing | {"status": "not run", "reason": block.get("reason")}
    shown = block.get("top_violations") if name == "spectral" else block.get("top_modules") if name == "rmt" else None
    moved = [(str(entry["module"]), entry["log_ratio"]) for entry in shown or []]
    caption = {
        "spectral": "Ln of the largest singular value over the baseline's, matrices that moved most; dashed: "
        f"{limit:g}, from where on a matrix counts as capped",
        "rmt": "Ln of the edge risk over the baseline's, modules that moved most",
    }
    return nothing | {
        "status": block["status"],
        "failures": [_failure(entry) for entry in block.get("failures", [])],
        "figure": _statistic(name, block),
        "plot": bars(moved, limit if name == "spectral" else None) if moved else None,
        "caption": caption.get(name),
    }


def _statistic(name: str, block: Mapping[str, Any]) -> str | None:
    """A guard's own figures in one line."""
    summary = block.get("summary") or {}
    if name == "spectral" and summary:
        return (
            f"{summary['modules_changed']} of {summary['modules_checked']} matrices changed, {block['caps_applied']} "
            f"capped (at most {summary['max_caps']} allowed), {block['fatal_violations']} fatal findings"
        )
    if name == "rmt" and summary:
        return (
            f"trimmed mean {number(block['trimmed_mean_log_ratio'])}, at most {block['epsilon']:g} allowed; "
            f"root mean square {number(block['rms_log_ratio'])}, at most {block['epsilon_rms']:g} allowed; "
            f"{summary['modules_compared']} modules on {summary['windows']} windows"
        )
    return None


def _failure(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    return f"{entry.get('type', 'finding')}: {entry.get('message', '')}"

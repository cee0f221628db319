"""The page of a pack: its verdict and one line per report. Nothing reads it back; the verifier ignores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render_verdict(suite: str, verdict: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> str:
    """One HTML document.

    Args:
        suite: name of the suite.
        verdict: results/final_verdict.json.
        reports: evaluation reports in the order in which they are shown.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # a value that a report lacks is shown as empty, a name that the template mistypes is an error
    environment = Environment(
        loader=PackageLoader("evpack.render", "templates"), autoescape=True, undefined=StrictUndefined
    )
    rows = [_row(report) for report in reports]
    return environment.get_template("verdict.html.j2").render(suite=suite, verdict=verdict, rows=rows)


def _row(report: Mapping[str, Any]) -> dict[str, Any]:
    meta, metric = report.get("meta") or {}, report.get("primary_metric") or {}
    pooled = metric.get("pooled") or {}
    interval = pooled.get("display_ci")
    return {
        "model": meta.get("model_name", ""),
        "scenario": meta.get("scenario", ""),
        "run": meta.get("run", ""),
        "expected": meta.get("strictness", ""),
        "ratio": _number(pooled.get("ratio")),
        "interval": f"{_number(interval[0])} to {_number(interval[1])}" if interval else "",
        "outcome": metric.get("outcome", ""),
        "invariants": (report.get("invariants") or {}).get("status", ""),
    }


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}" if value >= 1000 else f"{value:.4f}"

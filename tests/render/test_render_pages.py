"""Pages and plots: escaped, honest about what is not finite, well-formed."""

from __future__ import annotations

import copy
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.render.diff import render_diff
from evpack.render.guards import guard_figures
from evpack.render.page import render_pack, render_report
from evpack.render.plots import Level, Line, bars, forest, levels

ratios = st.none() | st.floats(1e-300, 1e300)
VERDICT: dict[str, Any] = {
    "verdict": "FAIL",
    "timestamp": "2026-01-01T00:00:00Z",
    "policy": {"tier": "balanced", "profile": "small"},
    "failed_requirements": [{"requirement": "x", "message": "<script>alert(1)</script>"}],
}
RUN = {
    "run": 1,
    "path": "m/reports/s/run_1/evaluation.report.json",
    "problem": None,
    "outcome": "reject",
    "ratio": None,
    "display_ci": None,
    "reasons": ["drift_fail"],
}
CELL = {
    "model": "<img>",
    "scenario": "s",
    "strictness": "must_pass",
    "state": "not met",
    "got": "passed 0/1",
    "hard_flips": ["drift"],
    "remediations": [],
    "runs": [RUN],
}


def pack_page(**changes: Any) -> str:
    values: dict[str, Any] = {
        "suite": "<b>",
        "level": "low",
        "signer": None,
        "verdict": VERDICT,
        "cells": [CELL],
        "limits": (0.95, 1.1),
        "guards": ("invariants",),
        "links": {},
        "provenance": [("Code", "<i>")],
        "remediated": {},
    }
    return render_pack(**values | changes)


def test_markup_in_a_value_stays_text() -> None:
    page = pack_page()
    assert "<script>" not in page and "<img>" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page


def test_the_heat_map_counts_what_the_guard_summary_counts() -> None:
    results = Path(__file__).parents[1] / "packs" / "v1" / "pack" / "results"
    signals, scenarios, acted = (
        json.loads((results / f"{name}_summary.json").read_bytes())
        for name in ("guard_signal", "scenario_signal", "guard_intervention")
    )
    guards = ("invariants", "spectral", "rmt", "variance")
    remediated = {guard: acted[guard]["reports"] for guard in ("spectral", "variance")}
    cells = [cell | {"state": "met", "got": ""} for cell in scenarios["cells"]]
    page = pack_page(cells=cells, guards=guards, remediated=remediated)
    heat = page.partition('class="heat"')[2].partition("</table>")[0]
    columns = [name.replace(" ", "_") for name in re.findall("<th>([^<]*)</th>", heat.partition("</thead>")[0])][1:]
    totals = dict.fromkeys(columns, 0)
    for row in heat.partition("<tbody>")[2].split("</tr>")[:-1]:
        for name, shown in zip(columns, re.findall(">([^<]*)</td>", row), strict=True):
            totals[name] += int(shown.partition("/")[0])
    assert totals == {name: signals["guards"][name]["any_signal"] for name in columns}
    assert totals["spectral"] > 2 and totals["primary_metric"]


def test_a_metric_refused_for_its_accuracy_has_flipped() -> None:
    cell = CELL | {"runs": [RUN | {"outcome": "accept", "ratio": 1.0, "reasons": ["accuracy_reject"]}]}
    heat = pack_page(cells=[cell]).partition('class="heat"')[2]
    assert "primary metric" in heat and "1/1" in heat


def test_what_is_not_finite_or_missing_is_said() -> None:
    assert "not finite" in pack_page()
    gone = copy.deepcopy(CELL) | {"state": "missing", "got": "no report"}
    gone["runs"] = [RUN | {"problem": "no report", "outcome": None, "reasons": []}]
    page = pack_page(cells=[gone])
    assert "no report" in page and "No report could be read." in page


def test_a_pack_without_cells_has_a_page() -> None:
    assert "No report could be read." in pack_page(cells=[])


@given(st.lists(st.tuples(st.text(max_size=70), ratios, ratios, ratios), max_size=4))
def test_a_forest_plot_is_well_formed_whatever_it_shows(rows: list[tuple[Any, ...]]) -> None:
    plot = str(forest([Line(*row, kind="accept") for row in rows], (0.95, 1.1)))
    _parse(plot)
    assert all(0 <= place <= 100 for place in _places(plot))


@given(st.lists(st.tuples(st.text(max_size=70), st.none() | st.floats(-1e6, 1e6)), max_size=4))
def test_bars_are_well_formed(values: list[tuple[str, float | None]]) -> None:
    plot = str(bars(values, 0.05))
    _parse(plot)
    assert all(0 <= place <= 100 for place in _places(plot))


magnitudes = st.none() | st.floats(0) | st.just(float("nan"))


@given(st.lists(st.tuples(st.text(max_size=70), magnitudes), max_size=4), st.lists(st.floats(1e-3, 10), max_size=3))
def test_levels_are_well_formed(values: list[tuple[str, float | None]], limits: list[float]) -> None:
    plot = str(levels([Level(*value) for value in values], limits))
    _parse(plot)
    assert all(0 <= place <= 100 for place in _places(plot))
    assert plot.count("not finite") >= sum(value is None or not math.isfinite(value) for _, value in values)


def test_a_longer_bar_is_a_larger_magnitude_and_limits_lie_between() -> None:
    plot = str(levels([Level("a", 0.01), Level("b", 1.0)], [0.1]))
    first, second = (float(text) for text in re.findall(r'class="bar [a-z]+" style="left:0.00%;width:([0-9.]+)%', plot))
    limit = float(re.findall(r'class="mark limit" style="left:([0-9.]+)%', plot)[0])
    assert first < limit < second


def test_the_grid_of_guards_shows_figures_not_only_colours() -> None:
    runs = [RUN, RUN | {"run": 2, "reasons": []}, RUN | {"run": 3, "problem": "no report", "outcome": None}]
    page = pack_page(cells=[copy.deepcopy(CELL) | {"runs": runs}])
    assert '<td class="most">1/2</td>' in page and '<td class="none">0/2</td>' in page
    assert "<th>drift</th>" in page and "<th>overhead</th>" not in page


@pytest.mark.parametrize("regressions", [[], ["m/s: <b>"]])
def test_a_comparison_page_escapes(regressions: list[str]) -> None:
    side = {"pack": "<p>", "verdict": "PASS", "manifest_digest": "sha256:0", "signer_fingerprint": None}
    cell = {
        "model": "m",
        "scenario": "s",
        "old": {"got": "passed 1/1"},
        "new": None,
        "shift": None,
        "signals_new": [],
        "signals_gone": [],
        "regressions": regressions,
    }
    result = {"old": side, "new": side, "same_evidence": False, "regressions": regressions, "cells": [cell]}
    sections = ("models", "lanes", "source", "policy", "settings", "environment")
    result |= {name: {"k": ["<x>", None]} for name in sections}
    page = render_diff(result)
    assert "<b>" not in page and "<x>" not in page and "not evaluated" in page and "nobody" in page


def _parse(svg: str) -> None:
    allowed = "".join(char for char in svg if char in "\t\n\r" or ord(char) >= 32)
    assert "<script" not in svg
    if all(ord(char) not in range(0xD800, 0xE000) and ord(char) not in (0xFFFE, 0xFFFF) for char in allowed):
        ElementTree.fromstring(allowed)  # noqa: S314 - written by ourselves


def _places(plot: str) -> list[float]:
    return [float(text) for text in re.findall(r"left:([^%;]+)%", plot)]


@pytest.fixture
def report() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "packs/v1/pack/reports/fixture/quant_clean/run_1/evaluation.report.json"
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def test_modules_that_moved_are_plotted_and_a_failing_guard_is_explained(report: dict[str, Any]) -> None:
    failure = {"type": "sigma_ratio_fatal", "message": "too large <b>"}
    moved = [{"module": "layers.0.mlp", "log_ratio": 0.7}, {"module": "layers.1.mlp", "log_ratio": None}]
    report["spectral"] |= {"status": "fail", "failures": [failure], "top_violations": moved}
    report["rmt"] |= {"top_modules": moved[:1]}
    page = render_report(report)
    assert page.count('class="plot"') == 3 and "+0.7" in page and "not finite" in page
    assert "sigma_ratio_fatal: too large &lt;b&gt;" in page
    assert "matrices changed" in page and "allowed" in page


def test_what_a_pack_shows_of_a_reports_guards(report: dict[str, Any]) -> None:
    found = guard_figures(report)
    assert (found["model"], found["scenario"], found["run"]) == ("fixture", "quant_clean", 1)
    assert found["spectral"]["kind"] == found["rmt"]["kind"] == "accept"
    assert found["spectral"]["value"] == report["spectral"]["summary"]["max_abs_log_ratio"]
    assert found["rmt"]["limits"] == [1.0] and 0 < found["rmt"]["value"] < 1
    page = pack_page(figures=[found])
    assert "How far weights moved" in page and "How far activations moved" in page
    report["rmt"] = {"evaluated": True, "status": "error", "failures": []}
    report["spectral"] = {"evaluated": False, "reason": "not in the order"}
    assert guard_figures(report).keys() == {"model", "scenario", "run"}
    assert "How far" not in pack_page(figures=[guard_figures(report)])


def test_a_report_whose_metric_is_broken_has_a_page(report: dict[str, Any]) -> None:
    metric = report["primary_metric"]
    metric |= {"final": None, "ratio_vs_baseline": None, "ci": None, "display_ci": None, "degraded": True}
    metric |= {"pooled": {"ratio": None, "ci": None, "display_ci": None, "pairs": 0}, "degraded_reason": "nan"}
    assert "degraded: nan" in render_report(report) and "not finite" in render_report(report)

"""Rows say honestly whether a promise holds; the critical path is the chain that was waited for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.area_campaign import Span, critical_path_seconds
from benchmarks.rows import Row


def test_a_row_compares_with_its_target_or_its_reference() -> None:
    assert Row("a", 5, "s", 5, "at most").holds
    assert not Row("a", 5.1, "s", 5, "at most").holds
    assert Row("a", 90, "MB/s", 0.4, "at least", reference=200, reference_name="copy").holds
    assert not Row("a", 70, "MB/s", 0.4, "at least", reference=200, reference_name="copy").holds


def test_the_page_names_what_falls_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(rows, "PAGE", tmp_path / "page.md")
    path = rows.write_area("x", [Row("fast", 1, "s", 2, "at most"), Row("slow", 3, "s", 2, "at most", note="why")])
    assert [row["holds"] for row in json.loads(path.read_text())["rows"]] == [True, False]
    path.with_suffix(".md").write_text("What was tried.")
    rows.write_page()
    page = (tmp_path / "page.md").read_text()
    assert "| slow | 3 s |" in page
    assert "**no**" in page
    assert "What was tried." in page


def test_critical_path_follows_what_was_waited_for() -> None:
    spans = [
        Span("setup", 0, 10),
        Span("create.a", 11, 12),
        Span("create.b", 11, 20),
        Span("evaluate.a", 12.5, 60),
        Span("evaluate.b", 21, 30),
        Span("evaluate.c", 31, 62),
        Span("verdict", 63, 64),
    ]
    # verdict <- evaluate.c <- evaluate.b <- create.b <- setup
    assert critical_path_seconds(spans) == pytest.approx(1 + 31 + 9 + 9 + 10)

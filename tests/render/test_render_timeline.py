"""The timeline: every attempt is a bar in the row of what it held, and nothing overlaps that was not at once."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evpack.files import write_json
from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.render.timeline import Bar, _slots, timeline
from evpack.rundir import RunDir
from evpack.steps.timeline import TIMELINE_NAME, attempt_bars, write_timeline
from tests.plans import campaign_plan, model_plan


def titles(svg: str) -> list[str]:
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]


def test_a_bar_per_device_and_one_on_the_processor() -> None:
    svg = timeline(
        [
            Bar("m.calibrate", "calibrate", "M", 10, 14, ("GPU-0", "GPU-1")),
            Bar("m.create", "create", "M", 11, 12),
            Bar("compile_verdict", "compile_verdict", None, 14, 15, failed=True),
        ],
        ["GPU-0", "GPU-1", "GPU-2"],
    )
    assert titles(svg) == ["m.calibrate: 4.0 s"] * 2 + ["m.create: 1.0 s", "compile_verdict: 1.0 s, failed"]
    assert "GPU-2" in svg  # a device that nothing held has its row
    assert ">processor<" in svg
    assert ">1 at once<" in svg
    assert "1: M" in svg


def test_devices_stand_in_the_order_of_their_numbers() -> None:
    svg = timeline([Bar("m", "evaluate", "M", 0, 1, ("GPU-10", "GPU-9"))], ["GPU-2"])
    assert re.findall(r"GPU-\d+", svg) == ["GPU-2", "GPU-9", "GPU-10"]


def test_no_attempt_is_a_picture_too() -> None:
    assert titles(timeline([])) == []


def test_names_cannot_break_the_file() -> None:
    nasty = "<script>&\"'"
    assert titles(timeline([Bar(nasty, nasty, nasty, 0, 1, (nasty,), failed=True)])) == [f"{nasty}: 1.0 s, failed"]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=30))
def test_bars_on_the_processor_share_a_row_only_one_after_the_other(spans: list[tuple[int, int]]) -> None:
    bars = [Bar(str(number), "create", "M", start, start + length) for number, (start, length) in enumerate(spans)]
    rows = _slots(bars)
    for one in bars:
        for other in bars:
            if one is not other and rows[id(one)] == rows[id(other)]:
                assert one.end <= other.start or other.end <= one.start
    most = max((sum(b.start <= bar.start < b.end for b in bars) for bar in bars), default=0)
    assert max(rows.values(), default=-1) + 1 == most


def plan() -> CampaignPlan:
    model = model_plan(label="M", devices=2, lane="gpu2_s")
    step = StepPlan(id="m.calibrate", type=StepType.CALIBRATE, model="m", lane="gpu2_s")
    return campaign_plan([step], models=(model,))


def record(run: RunDir, number: int, **fields: Any) -> None:
    value = {
        "try": number,
        "started_at": f"2026-11-23T10:00:0{number}Z",
        "started_unix": 100.0 * number,
        "ended_at": "2026-11-23T10:01:00Z",
        "seconds": 30.0,
        "class": "ok",
        "leased": None,
    }
    write_json(run.attempts("m.calibrate") / f"{number}.json", {**value, **fields})


def test_the_bars_of_a_run_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    leased = {"devices": ["GPU-1", "GPU-0"], "simulated": True, "waited_s": 5.0}
    record(run, 1, **{"class": "transient"})
    record(run, 2, leased=leased)
    record(run, 3, ended_at=None, seconds=None, **{"class": "running"})
    failed, good = attempt_bars(run, plan())
    assert (failed.failed, failed.start, failed.end, failed.devices) == (True, 100, 130, ())
    assert (good.failed, good.start, good.end, good.devices) == (False, 205, 230, ("GPU-1", "GPU-0"))
    write_timeline(run, plan())
    svg = (run.analysis / TIMELINE_NAME).read_text()
    assert len(titles(svg)) == 3
    assert re.search(r"GPU-1.*GPU-0|GPU-0.*GPU-1", svg, re.DOTALL)


def test_an_attempt_that_was_killed_ends_when_somebody_saw_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, 1, seconds=None, started_unix=None, **{"class": "transient"})
    (bar,) = attempt_bars(run, plan())
    assert bar.end - bar.start == 59

"""Whatever fails, the run ends as failed and everything that can still be made is made. Steps are stand-ins here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import StepExit
from evpack.files import read_json
from evpack.plan.model import load_plan
from evpack.rundir import RunDir

pytestmark = pytest.mark.airflow


def test_all_steps_well_but_no_evidence_is_incomplete_and_red(play: Any, tmp_path: Path) -> None:
    state, tasks = play(tmp_path / "run")
    run = RunDir(tmp_path / "run")
    assert state == "failed"
    assert tasks["cpu_s.cells.evaluate"] == {"success": 2}
    assert tasks["compile_verdict"] == {"success": 1}
    assert tasks["gate"] == {"failed": 1}
    assert read_json(run.final_verdict)["verdict"] == "INCOMPLETE"
    lanes = {task_id.partition(".")[0]: count for task_id, count in tasks.items() if "." in task_id}
    assert all(count == {"skipped": 1} for lane, count in lanes.items() if lane != "cpu_s")


def test_plan_fails(play: Any, tmp_path: Path) -> None:
    state, tasks = play(tmp_path / "run", suite="subset")
    assert state == "failed"
    assert tasks["plan"] == {"failed": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"upstream_failed": 1}
    assert [tasks[name] for name in ("compile_verdict", "build_pack", "verify_pack", "gate")] == [{"failed": 1}] * 4
    assert not (tmp_path / "run").exists()


def test_one_cell_fails_and_the_other_is_evaluated(
    play: Any, cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = {f"fixture.{cells[0]}.create": int(StepExit.PERMANENT)}
    monkeypatch.setenv("FAKE_STEP_FAILS", json.dumps(fails))
    state, tasks = play(tmp_path / "run")
    assert state == "failed"
    assert tasks["cpu_s.cells.create"] == {"failed": 1, "success": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"failed": 1, "success": 1}
    assert tasks["compile_verdict"] == {"success": 1}
    assert RunDir(tmp_path / "run").final_verdict.is_file()


def test_a_failed_calibration_blocks_its_models_evaluations_only(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_FAILS", json.dumps({"fixture.calibrate": int(StepExit.PERMANENT)}))
    state, tasks = play(tmp_path / "run")
    assert state == "failed"
    assert tasks["cpu_s.models.derive_preset"] == {"failed": 1}
    assert tasks["cpu_s.cells.create"] == {"success": 2}
    assert tasks["cpu_s.cells.evaluate"] == {"failed": 2}
    assert tasks["compile_verdict"] == {"success": 1}


def test_selection_fails(play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evpack.airflow import items

    def broken(*_: object) -> list[object]:
        raise TypeError("the selection broke")  # a defect, which no other try cures

    monkeypatch.setattr(items, "cell_items", broken)
    state, tasks = play(tmp_path / "run")
    assert state == "failed"
    assert tasks["cpu_s.select_cells"] == {"failed": 1}
    assert tasks["cpu_s.models.derive_preset"] == {"success": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"upstream_failed": 1}
    assert tasks["compile_verdict"] == {"success": 1}
    assert read_json(RunDir(tmp_path / "run").final_verdict)["verdict"] == "INCOMPLETE"


def test_a_second_run_on_the_directory_keeps_the_plan(play: Any, tmp_path: Path) -> None:
    play(tmp_path / "run")
    before = load_plan(RunDir(tmp_path / "run")).digest()
    state, tasks = play(tmp_path / "run", resume=str(tmp_path / "run"), output_dir=None, suite=None, scenarios=None)
    assert state == "failed"
    assert tasks["cpu_s.cells.evaluate"] == {"success": 2}
    assert load_plan(RunDir(tmp_path / "run")).digest() == before

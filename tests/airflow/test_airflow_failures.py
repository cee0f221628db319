"""Whatever fails, the run ends as failed and everything that can still be made is made. Steps are stand-ins here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import StepExit
from evpack.files import read_json
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.runtime import process

pytestmark = pytest.mark.airflow

FAKE = Path(__file__).with_name("fake_step.py")
SCENARIOS = ["quant_clean", "nan_injection"]


@pytest.fixture(scope="module")
def dag(database: None, dag_files: Path) -> Any:
    from airflow.dag_processing.dagbag import BundleDagBag

    return BundleDagBag(dag_files, bundle_path=dag_files, bundle_name="dags-folder").get_dag("evidence_campaign")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    real = process.step_command

    def command(*args: Any, **kwargs: Any) -> list[str]:
        return [sys.executable, str(FAKE), *real(*args, **kwargs)[4:]]

    monkeypatch.setattr(process, "step_command", command)


@pytest.fixture
def cells(scenarios: dict[str, str]) -> list[str]:
    return [scenarios["clean"], scenarios["error_injection"]]


def play(dag: Any, run_dir: Path, cells: list[str], **conf: Any) -> tuple[str, dict[str, Counter[str]]]:
    """Run the DAG in this process; the run's state and the states of each task's instances."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    fresh = {"resume": None, "suite_mode": None}  # the DAG object keeps the params of an earlier play
    run = dag.test(run_conf={"suite": "fixture", "scenarios": cells, "output_dir": str(run_dir), **fresh, **conf})
    states: dict[str, Counter[str]] = {}
    with create_session() as session:
        rows = select(TaskInstance.task_id, TaskInstance.state).where(TaskInstance.run_id == run.run_id)
        for task_id, state in session.execute(rows):
            states.setdefault(task_id, Counter())[str(state)] += 1
    return str(run.state), states


def test_all_steps_well_but_no_evidence_is_incomplete_and_red(dag: Any, cells: list[str], tmp_path: Path) -> None:
    state, tasks = play(dag, tmp_path / "run", cells)
    run = RunDir(tmp_path / "run")
    assert state == "failed"
    assert tasks["cpu_s.cells.evaluate"] == {"success": 2}
    assert tasks["compile_verdict"] == {"success": 1}
    assert tasks["gate"] == {"failed": 1}
    assert read_json(run.final_verdict)["verdict"] == "INCOMPLETE"
    lanes = {task_id.partition(".")[0]: count for task_id, count in tasks.items() if "." in task_id}
    assert all(count == {"skipped": 1} for lane, count in lanes.items() if lane != "cpu_s")


def test_plan_fails(dag: Any, cells: list[str], tmp_path: Path) -> None:
    state, tasks = play(dag, tmp_path / "run", cells, suite="subset")
    assert state == "failed"
    assert tasks["plan"] == {"failed": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"upstream_failed": 1}
    assert [tasks[name] for name in ("compile_verdict", "build_pack", "verify_pack", "gate")] == [{"failed": 1}] * 4
    assert not (tmp_path / "run").exists()


def test_one_cell_fails_and_the_other_is_evaluated(
    dag: Any, cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = {f"fixture.{cells[0]}.create": int(StepExit.PERMANENT)}
    monkeypatch.setenv("FAKE_STEP_FAILS", json.dumps(fails))
    state, tasks = play(dag, tmp_path / "run", cells)
    assert state == "failed"
    assert tasks["cpu_s.cells.create"] == {"failed": 1, "success": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"failed": 1, "success": 1}
    assert tasks["compile_verdict"] == {"success": 1}
    assert RunDir(tmp_path / "run").final_verdict.is_file()


def test_a_failed_calibration_blocks_its_models_evaluations_only(
    dag: Any, cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_FAILS", json.dumps({"fixture.calibrate": int(StepExit.PERMANENT)}))
    state, tasks = play(dag, tmp_path / "run", cells)
    assert state == "failed"
    assert tasks["cpu_s.models.derive_preset"] == {"failed": 1}
    assert tasks["cpu_s.cells.create"] == {"success": 2}
    assert tasks["cpu_s.cells.evaluate"] == {"failed": 2}
    assert tasks["compile_verdict"] == {"success": 1}


def test_selection_fails(dag: Any, cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evpack.airflow import items

    def broken(*_: object) -> list[object]:
        raise RuntimeError("the selection broke")

    monkeypatch.setattr(items, "cell_items", broken)
    state, tasks = play(dag, tmp_path / "run", cells)
    assert state == "failed"
    assert tasks["cpu_s.select_cells"] == {"failed": 1}
    assert tasks["cpu_s.models.derive_preset"] == {"success": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"upstream_failed": 1}
    assert tasks["compile_verdict"] == {"success": 1}
    assert read_json(RunDir(tmp_path / "run").final_verdict)["verdict"] == "INCOMPLETE"


def test_a_second_run_on_the_directory_keeps_the_plan(dag: Any, cells: list[str], tmp_path: Path) -> None:
    play(dag, tmp_path / "run", cells)
    before = load_plan(RunDir(tmp_path / "run")).digest()
    state, tasks = play(
        dag, tmp_path / "run", cells, resume=str(tmp_path / "run"), output_dir=None, suite=None, scenarios=None
    )
    assert state == "failed"
    assert tasks["cpu_s.cells.evaluate"] == {"success": 2}
    assert load_plan(RunDir(tmp_path / "run")).digest() == before

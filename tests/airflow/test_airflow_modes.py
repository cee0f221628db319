"""Modes: the whole graph is planned, only a part of it is started. Steps are stand-ins here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evpack.cli.main import build_app
from evpack.errors import BadInput, CampaignExit, StepExit
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.runtime import process
from evpack.runtime.outcome import calibration_outcome
from evpack.runtime.threads import frozen_settings
from evpack.steps import runner
from evpack.steps.plan import open_campaign
from evpack.steps.runner import input_digest
from evpack.steps.state import read_marker

pytestmark = pytest.mark.airflow


def done(run: RunDir) -> set[str]:
    return {step.id for step in load_plan(run).steps if read_marker(run, step.id) is not None}


def test_calibrate_only_then_run_only_on_the_same_plan(
    play: Any, cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = RunDir(tmp_path / "run"), list[str]()
    monkeypatch.setattr(runner, "write_timeline", lambda run, plan: written.append(run.root.name))
    state, tasks = play(run.root, suite_mode="calibrate-only")
    assert state == "success"
    assert done(run) == {"fixture.setup_baseline", "fixture.calibrate", "fixture.derive_preset"}
    assert tasks["cpu_s.cells.create"] == {"skipped": 1}
    assert [tasks[name] for name in ("compile_verdict", "build_pack", "verify_pack")] == [{"skipped": 1}] * 3
    assert tasks["gate"] == {"success": 1}
    assert not run.final_verdict.exists()
    assert read_json(run.progress)["completed"] == 3 and read_json(run.errors) == []
    assert calibration_outcome(run).exit is CampaignExit.PASS
    planned = load_plan(run)
    assert len(planned.steps) == 3 + 2 * len(cells) + 3
    assert frozen_settings(run).suite_mode == "full"

    before = {name: read_marker(run, name) for name in done(run)}
    state, tasks = play(
        run.root, resume=str(run.root), output_dir=None, suite=None, scenarios=None, suite_mode="run-only"
    )
    assert tasks["cpu_s.models.calibrate"] == {"skipped": 1}
    assert tasks["cpu_s.cells.evaluate"] == {"success": len(cells)}
    assert tasks["compile_verdict"] == {"success": 1}
    assert load_plan(run).digest() == planned.digest()
    assert {name: read_marker(run, name) for name in before} == before
    progress = read_json(run.progress)
    assert (progress["pending"], progress["running"]) == (0, 0)  # the closing steps are counted as they ended
    assert written == ["run", "run"]  # once by each DAG run, however many closing steps it has


def test_a_failed_calibration_makes_calibrate_only_red(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_FAILS", json.dumps({"fixture.calibrate": int(StepExit.PERMANENT)}))
    state, tasks = play(tmp_path / "run", suite_mode="calibrate-only")
    assert state == "failed"
    assert tasks["gate"] == {"failed": 1}
    outcome = calibration_outcome(RunDir(tmp_path / "run"))
    assert outcome.exit is CampaignExit.INCOMPLETE and "no preset of fixture" in outcome.line()


def test_run_only_needs_presets(cells: list[str], tmp_path: Path) -> None:
    home, root = Home(tmp_path / "home"), tmp_path / "run"
    params = {"suite": "fixture", "scenarios": cells, "output_dir": str(root), "num_gpus": 0}
    with pytest.raises(BadInput, match="holds no plan"):
        open_campaign({**params, "suite_mode": "run-only"}, home, environ={})
    assert not root.exists()
    open_campaign({**params, "suite_mode": "calibrate-only"}, home, environ={})
    with pytest.raises(BadInput, match="no preset yet of fixture"):
        open_campaign({"resume": str(root), "suite_mode": "run-only"}, home, environ={})
    open_campaign({"resume": str(root)}, home, environ={})


def test_what_was_planned_without_tuned_parameters_is_only_calibrated(tmp_path: Path) -> None:
    home, root = Home(tmp_path / "home"), tmp_path / "run"
    params = {
        "suite": "fixture",
        "output_dir": str(root),
        "num_gpus": 0,
        "tuned_edit_params_file": str(tmp_path / "no"),
    }
    with pytest.raises(BadInput, match="does not exist"):
        open_campaign(params, home, environ={})
    for _ in range(2):
        open_campaign({**params, "suite_mode": "calibrate-only"}, home, environ={})
    for mode in ("full", "run-only"):
        with pytest.raises(BadInput, match=r"for calibration only.*fixture:quant_rtn:missing") as caught:
            open_campaign({"resume": str(root), "suite_mode": mode}, home, environ={})
        assert str(root / "presets") in caught.value.mend


def test_both_modes_at_once_are_refused() -> None:
    result = CliRunner().invoke(build_app(), ["campaign", "run", "--calibrate-only", "--run-only"])
    assert isinstance(result.exception, BadInput)


def test_a_resume_starts_no_process_for_what_is_done(
    play: Any, cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    play(run.root)
    plan = load_plan(run)
    for step in plan.steps:  # the stand-in's markers carry no real digest
        if step.model is not None:
            marker = read_json(run.marker(step.id))
            write_json(run.marker(step.id), {**marker, "input_digest": input_digest(run, plan, step)})
    started: list[str] = []
    real = process.step_command

    def counted(root: Path, step_id: str, **kwargs: Any) -> list[str]:
        started.append(step_id)
        return real(root, step_id, **kwargs)

    monkeypatch.setattr(process, "step_command", counted)
    run.marker(f"fixture.{cells[0]}.evaluate").unlink()
    _, tasks = play(run.root, resume=str(run.root), output_dir=None, suite=None, scenarios=None)
    assert tasks["cpu_s.cells.evaluate"] == {"success": 2}
    assert started == [f"fixture.{cells[0]}.evaluate"]

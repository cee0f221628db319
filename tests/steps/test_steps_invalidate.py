"""What is taken back is redone on resume, with everything made from it and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evpack.airflow.client import Client, Endpoint
from evpack.cli.main import build_app
from evpack.errors import BadInput, CampaignExit, StepExit
from evpack.files import read_json, write_json
from evpack.plan.model import StepPlan, StepType, load_plan
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps import runner, state
from evpack.steps.base import StepContext
from evpack.steps.invalidate import dependents, invalidate
from tests.plans import model_plan, planned_run


def publish(ctx: StepContext) -> list[Path]:
    """A file of the step's own; a redo writes the same, unless another input is there for it."""
    with (ctx.run.root / "journal").open("a") as journal:
        journal.write(ctx.step.id + "\n")
    target, source = ctx.run.root / "made" / ctx.step.id, ctx.run.root / f"{ctx.step.id}.input"
    target.parent.mkdir(exist_ok=True)
    target.write_text(source.read_text() if source.exists() else ctx.step.id)
    return [target]


def steps_of(model: str) -> list[StepPlan]:
    def step(type_: StepType, *needs: str) -> StepPlan:
        return StepPlan(
            id=f"{model}.{type_}", type=type_, model=model, lane="cpu_s", needs=tuple(f"{model}.{n}" for n in needs)
        )

    return [
        step(StepType.SETUP_BASELINE),
        step(StepType.CALIBRATE, "setup_baseline"),
        step(StepType.DERIVE_PRESET, "calibrate"),
    ]


CLOSING = ["compile_verdict", "build_pack", "verify_pack"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Two models, all steps done."""
    monkeypatch.setattr(runner, "STEP_FUNCTIONS", dict.fromkeys(StepType, f"{__name__}:publish"))
    steps = (*steps_of("a"), *steps_of("b"), *(StepPlan(id=name, type=StepType(name)) for name in CLOSING))
    models = (model_plan("a"), model_plan("b"))
    directory = planned_run(tmp_path / "run", steps, Settings(min_free_disk_gb=0), models=models)
    play(directory)
    return directory


def play(run: RunDir) -> list[str]:
    """Every step once, as a resume does; the ids of those that did something, but for verdict, pack, verification."""
    journal = run.root / "journal"
    journal.unlink(missing_ok=True)
    for step in load_plan(run).steps:
        assert runner.run_step(run.root, step.id) is StepExit.OK
    return [name for name in journal.read_text().split() if name not in CLOSING]


def test_a_step_and_its_dependents_are_redone_and_nothing_else(run: RunDir) -> None:
    assert play(run) == []
    taken = invalidate(run, load_plan(run), "a.calibrate")
    assert taken == ["a.calibrate", "a.derive_preset", *CLOSING]
    assert {path.name for path in (run.archive / "a.calibrate").rglob("*") if path.is_file()} == {
        "marker.json",
        "a.calibrate",
    }
    assert not (run.root / "made" / "a.calibrate").exists()
    assert state.step_state(run, "a.setup_baseline") == "done"
    assert state.step_state(run, "a.calibrate") == "waiting"
    assert play(run) == ["a.calibrate", "a.derive_preset"]
    assert state.step_state(run, "verify_pack") == "done"


def test_a_changed_result_redoes_exactly_what_depends_on_it(run: RunDir) -> None:
    made = run.root / "made" / "b.calibrate"
    made.write_text("tampered with")
    assert play(run) == ["b.calibrate"]  # made again with the same bytes: nothing behind it changes
    (run.root / "b.calibrate.input").write_text("another input")
    made.unlink()
    assert play(run) == ["b.calibrate", "b.derive_preset"]
    assert play(run) == []


def test_the_verdict_depends_on_everything(run: RunDir) -> None:
    plan = load_plan(run)
    assert dependents(plan, "build_pack") == CLOSING
    assert dependents(plan, "a.setup_baseline") == [*(step.id for step in steps_of("a")), *CLOSING]


def test_nothing_is_taken_back_while_a_step_runs(run: RunDir) -> None:
    run.marker("a.calibrate").unlink()
    state.Attempt(run, "a.calibrate", 2, None).begin()
    with pytest.raises(BadInput, match=r"a\.calibrate .* is running"):
        invalidate(run, load_plan(run), "b.calibrate")


def test_an_unknown_step_is_refused_and_an_unreadable_marker_taken_back(run: RunDir) -> None:
    with pytest.raises(BadInput, match="no step 'c"):
        invalidate(run, load_plan(run), "c.calibrate")
    run.marker("a.derive_preset").write_text("{")
    assert "a.derive_preset" in invalidate(run, load_plan(run), "a.derive_preset")
    assert not run.marker("a.derive_preset").exists()


def test_the_command_says_what_it_took_back(run: RunDir) -> None:
    done = CliRunner().invoke(build_app(), ["invalidate", str(run.root), "b.derive_preset"])
    assert done.exit_code == 0, done.output
    assert "taken back: b.derive_preset" in done.output and "campaign resume" in done.output
    again = CliRunner().invoke(build_app(), ["invalidate", str(run.root), "b.derive_preset"])
    assert "nothing of it was finished" in again.output


@pytest.mark.parametrize(("answers", "state", "refused"), [(1, "running", 1), (1, "success", 0), (0, "running", 0)])
def test_nothing_is_taken_back_from_a_dag_run_that_goes_on(
    answers: int, state: str, refused: int, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(run.dag_run, {"at_work": {"dag_id": "d", "run_id": "r"}})
    monkeypatch.setattr("evpack.airflow.embedded.endpoint_of", lambda _: Endpoint("http://127.0.0.1:9", "admin", "p"))
    monkeypatch.setattr(Client, "health", lambda _: {"scheduler": "healthy"} if answers else {})
    monkeypatch.setattr(Client, "run_state", lambda *_: state)
    done = CliRunner().invoke(build_app(), ["invalidate", str(run.root), "b.derive_preset"])
    assert isinstance(done.exception, BadInput) == bool(refused), done.output
    assert run.marker("b.derive_preset").is_file() == bool(refused)


def test_a_killed_attempt_is_told_by_the_next(run: RunDir) -> None:
    run.marker("a.derive_preset").unlink()
    state.Attempt(run, "a.derive_preset", 1, None).begin()
    (path,) = [p for p in run.attempts("a.derive_preset").iterdir() if read_json(p)["class"] == "running"]
    write_json(path, {**read_json(path), "pid": 2**22 + os.getpid()})
    assert runner.run_step(run.root, "a.derive_preset", attempt=2) is StepExit.OK
    record = read_json(path)
    assert (record["class"], record["exit"]) == ("transient", StepExit.TRANSIENT)
    assert "killed" in record["error"]


def test_while_a_step_runs_there_is_no_verdict_to_show(run: RunDir) -> None:
    run.marker("a.derive_preset").unlink()
    state.Attempt(run, "a.derive_preset", 2, None).begin()
    shown = CliRunner().invoke(build_app(), ["campaign", "status", str(run.root)])
    assert shown.exit_code == CampaignExit.INCOMPLETE, shown.output
    assert "no verdict yet" in shown.output and "Verdict:" not in shown.output

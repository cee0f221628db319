"""Variants come and go within their budget; disk pressure stops a campaign before a step begins. Stand-in steps."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evpack.cli.main import build_app
from evpack.errors import BadInput, NoRoom, StepExit
from evpack.files import read_json
from evpack.plan import disk
from evpack.plan.model import StepPlan, StepType, load_plan
from evpack.publishing import publishing, temporary
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps import pressure, runner, state
from evpack.steps.base import StepContext
from evpack.steps.variants import is_whole, room_for, used_bytes
from tests.plans import planned_run
from tests.waiting import DEADLINE_S

WEIGHTS = 600
"""Bytes of a stand-in variant; a step announces 1,000."""
CELLS = ("one", "two", "three")


def work(ctx: StepContext) -> list[Path]:
    """Makes a variant, or reads one; `fail` beside the state makes evaluations fail."""
    with (ctx.run.root / "journal").open("a") as journal:
        journal.write(f"{ctx.step.id}\n")
    place = ctx.run.model("m")
    if ctx.step.type is StepType.CREATE:
        target = place.variant(ctx.step.scenario or "")
        shutil.rmtree(target, ignore_errors=True)
        with publishing(target) as part:
            (part / "variant.json").write_text("{}")
            (part / "delta.safetensors").write_bytes(b"x" * WEIGHTS)
        return [target]
    assert (place.variant(ctx.step.scenario or "") / "delta.safetensors").stat().st_size == WEIGHTS
    if (ctx.run.root / "fail").exists():
        raise TypeError("cannot be evaluated")
    report = place.root / "reports" / f"{ctx.step.scenario}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("{}")
    return [report]


def lose_the_variant(ctx: StepContext) -> list[Path]:
    """Fails half-way, as a create step may."""
    shutil.rmtree(ctx.run.model("m").variant(ctx.step.scenario or ""))
    raise ConnectionResetError("half-way")


Plan = Callable[..., RunDir]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A run directory with three cells of one model; settings and budget (GB) as given."""
    monkeypatch.setattr(runner, "STEP_FUNCTIONS", dict.fromkeys(StepType, f"{__name__}:work"))

    def make(budget: float | None = None, **settings: Any) -> RunDir:
        steps = []
        for cell in CELLS:
            create, evaluate = f"m.{cell}.create", f"m.{cell}.evaluate"
            steps.append(StepPlan(id=create, type=StepType.CREATE, model="m", scenario=cell, variant_gb=1e-6))
            steps.append(StepPlan(id=evaluate, type=StepType.EVALUATE, model="m", scenario=cell, needs=(create,)))
        frozen = Settings(**{"min_free_disk_gb": 0, **settings})
        return planned_run(tmp_path / "run", steps, frozen, variant_budget_gb=budget)

    return make


def create(run: RunDir, cell: str, **options: Any) -> StepExit:
    return runner.run_step(run.root, f"m.{cell}.create", **options)


def evaluate(run: RunDir, cell: str, **options: Any) -> StepExit:
    return runner.run_step(run.root, f"m.{cell}.evaluate", **options)


def weights(run: RunDir, cell: str) -> bool:
    return (run.model("m").variant(cell) / "delta.safetensors").exists()


def journal(run: RunDir) -> list[str]:
    """What was done since it was last asked."""
    path = run.root / "journal"
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return text.split()


# --- coming and going ------------------------------------------------------------------------------------------------
def test_weights_go_after_the_evaluation_and_resume_makes_nothing_again(planned: Plan) -> None:
    run = planned()
    assert create(run, "one") is StepExit.OK and weights(run, "one")
    assert evaluate(run, "one") is StepExit.OK
    assert not weights(run, "one") and (run.model("m").variant("one") / "variant.json").is_file()
    journal(run)
    assert (create(run, "one", dag_run="resumed"), evaluate(run, "one", dag_run="resumed")) == (
        StepExit.OK,
        StepExit.OK,
    )
    assert journal(run) == []


def test_kept_variants_stay(planned: Plan) -> None:
    run = planned(keep_variants=True)
    create(run, "one")
    evaluate(run, "one")
    assert weights(run, "one")


def test_a_cleared_evaluation_has_its_variant_made_again(planned: Plan) -> None:
    run = planned()
    create(run, "one", dag_run="r")
    evaluate(run, "one", dag_run="r")
    before = state.read_marker(run, "m.one.create")
    journal(run)
    assert evaluate(run, "one", dag_run="r", attempt=2) is StepExit.OK
    assert journal(run) == ["m.one.create", "m.one.evaluate"]
    after = state.read_marker(run, "m.one.create")
    assert before is not None and after is not None and before.outputs_digest() == after.outputs_digest()
    assert not weights(run, "one")


def test_a_lost_report_brings_back_variant_and_evaluation(planned: Plan) -> None:
    run = planned()
    create(run, "one")
    evaluate(run, "one")
    (run.model("m").root / "reports" / "one.json").unlink()
    journal(run)
    assert (create(run, "one"), evaluate(run, "one")) == (StepExit.OK, StepExit.OK)
    assert journal(run) == ["m.one.create", "m.one.evaluate"]


def test_a_variant_that_could_not_be_made_again_is_tried_again(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned()
    create(run, "one", dag_run="r")
    evaluate(run, "one", dag_run="r")
    real = dict(runner.STEP_FUNCTIONS)
    monkeypatch.setattr(runner, "STEP_FUNCTIONS", {**real, StepType.CREATE: f"{__name__}:lose_the_variant"})
    assert evaluate(run, "one", dag_run="r", attempt=2) is StepExit.TRANSIENT
    monkeypatch.setattr(runner, "STEP_FUNCTIONS", real)
    assert evaluate(run, "one", dag_run="r", attempt=3) is StepExit.OK


def test_a_lost_description_is_no_spent_variant(planned: Plan) -> None:
    run = planned()
    create(run, "one")
    evaluate(run, "one")
    (run.model("m").variant("one") / "variant.json").unlink()
    journal(run)
    assert create(run, "one") is StepExit.OK
    assert journal(run) == ["m.one.create"]


# --- the budget ------------------------------------------------------------------------------------------------------
def test_without_room_a_variant_waits_and_that_is_no_failure(planned: Plan) -> None:
    run = planned(budget=1.7e-6)
    assert create(run, "one") is StepExit.OK
    assert create(run, "two") is StepExit.OK  # 600 on disk, 1,000 announced
    assert create(run, "three") is StepExit.NO_ROOM
    assert used_bytes(run, load_plan(run)) == 2 * WEIGHTS
    plan = load_plan(run)
    assert state.step_state(run, "m.three.create") == "waiting"
    assert state.errors(run, plan) == []
    assert evaluate(run, "one") is StepExit.OK
    assert create(run, "three") is StepExit.OK


def test_what_is_at_work_counts_with_what_it_may_come_to(planned: Plan) -> None:
    run = planned(budget=1.7e-6)
    plan = load_plan(run)
    with ExitStack() as held:
        held.enter_context(room_for(run, plan, plan.step("m.one.create")))
        assert used_bytes(run, plan) == 1000
        assert create(run, "two") is StepExit.NO_ROOM
    assert used_bytes(run, plan) == 0
    assert create(run, "two") is StepExit.OK


def test_the_variant_of_a_failed_evaluation_makes_room_and_is_made_again(planned: Plan) -> None:
    run = planned(budget=1e-6)
    create(run, "one")
    (run.root / "fail").touch()
    assert evaluate(run, "one") is StepExit.PERMANENT
    (run.root / "fail").unlink()
    assert create(run, "two") is StepExit.OK
    assert not weights(run, "one") and not is_whole(run, "m.one.create")
    assert evaluate(run, "one") is StepExit.NO_ROOM  # its variant must come back first
    assert evaluate(run, "two") is StepExit.OK
    assert evaluate(run, "one") is StepExit.OK
    assert used_bytes(run, load_plan(run)) == 0


def announce_and_die(root: Path, ready: Any) -> None:
    run = RunDir(root)
    plan = load_plan(run)
    with room_for(run, plan, plan.step("m.one.create")):
        temporary(run.model("m").root / "models" / "one", "work").mkdir(parents=True)
        ready.set()
        signal.pause()


def test_a_killed_step_gives_its_room_back_and_its_leftovers_go(planned: Plan) -> None:
    run = planned(budget=1e-6)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=announce_and_die, args=(run.root, ready))
    process.start()
    assert ready.wait(DEADLINE_S)
    assert create(run, "two") is StepExit.NO_ROOM
    process.kill()
    process.join()
    (left,) = (run.model("m").root / "models").glob("one.tmp.work.*")
    assert create(run, "one") is StepExit.OK
    assert not left.exists()


def test_the_lock_file_says_what_is_made(planned: Plan) -> None:
    run = planned(budget=5e-6)
    plan = load_plan(run)
    with room_for(run, plan, plan.step("m.two.create")):
        (file,) = run.variant_room.glob("*.lock")
        assert json.loads(file.read_text())["bytes"] == 1000
    with (
        pytest.raises(NoRoom, match="budget of 1e-07 GB"),
        room_for(run, plan.model_copy(update={"variant_budget_gb": 1e-7}), plan.step("m.two.create")),
    ):
        pytest.fail("there is no room")


# --- disk pressure ---------------------------------------------------------------------------------------------------
def test_below_the_limit_no_step_begins_and_with_room_again_it_goes_on(
    planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(min_free_disk_gb=10)
    monkeypatch.setattr(pressure, "free_gb", lambda _: 9.5)
    assert create(run, "one") is StepExit.DISK
    assert journal(run) == []
    found = read_json(run.disk_pressure)
    assert (found["free_gb"], found["min_free_gb"], found["output_dir"]) == (9.5, 10, str(run.root))
    assert evaluate(run, "one") is StepExit.DISK
    monkeypatch.setattr(pressure, "free_gb", lambda _: 10.5)
    assert create(run, "one") is StepExit.OK
    assert not run.disk_pressure.exists()


def test_who_skips_the_preflight_is_not_stopped_later(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(min_free_disk_gb=10, skip_disk_preflight=True)
    monkeypatch.setattr(disk, "free_gb", lambda _: 0.0)
    assert create(run, "one") is StepExit.OK


def test_export_tells_of_weights_that_were_removed(planned: Plan, tmp_path: Path) -> None:
    run = planned()
    create(run, "one")
    evaluate(run, "one")
    place = run.model("m").variant("one")
    words = ["variant", "export", str(place), "--baseline", str(tmp_path), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(build_app(), words).exception
    assert isinstance(found, BadInput) and "PACK_KEEP_VARIANTS=1" in found.mend

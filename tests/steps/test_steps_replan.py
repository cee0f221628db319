"""Models that ran out of memory move to the next lane on resume; everything finished stays. The work is a stand-in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evpack.errors import BadInput, OutOfMemory, StepExit
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.model import StepPlan, StepType, load_plan
from evpack.plan.nvml import SIMULATED_ENV
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps import runner, state
from evpack.steps.base import Leased, StepContext
from evpack.steps.replan import Shortage, replan, shortages
from tests.plans import model_plan, planned_run

A_SETUP, A_CALIBRATE, B_CALIBRATE = "a.setup_baseline", "a.calibrate", "b.calibrate"
SECOND = "a.second.calibrate"
"""Stands for all later steps on devices."""


def work(ctx: StepContext) -> list[Path]:
    """Needs as many devices as its file says, and publishes how it was made."""
    needed = ctx.run.root / f"{ctx.step.id}.needs"
    if needed.exists() and len(ctx.leased.devices) < int(needed.read_text()):
        raise OutOfMemory(f"{len(ctx.leased.devices)} devices are too few, batch {ctx.batch}")
    target = ctx.run.root / "made" / ctx.step.id
    target.parent.mkdir(exist_ok=True)
    target.write_text(f"{len(ctx.leased.devices)} {ctx.batch}")
    return [target]


@contextmanager
def lease(_ctx: StepContext, count: int) -> Iterator[Leased]:
    yield Leased(tuple(f"GPU-{number}" for number in range(count)), simulated=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home").create()


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setenv(SIMULATED_ENV, str(tmp_path / "gpus.json"))

    def write(count: int) -> None:
        devices = [{"uuid": f"GPU-{number}", "memory_gb": 80} for number in range(count)]
        (tmp_path / "gpus.json").write_text(json.dumps({"devices": devices}))

    write(4)
    return write


@pytest.fixture
def make_run(
    tmp_path: Path, home: Home, pretend: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int], RunDir]:
    """A planned campaign of two models with a batch of 8, in a lane with so many devices."""
    monkeypatch.setattr(runner, "STEP_FUNCTIONS", dict.fromkeys(StepType, f"{__name__}:work"))

    def make(lane: str, devices: int) -> RunDir:
        models = tuple(model_plan(name, lane=lane, devices=devices, batch=8, scoring_gb=6) for name in ("a", "b"))
        steps = [
            StepPlan(id=f"{name}.{last}", type=StepType(last.split(".")[-1]), model=name, lane=lane, needs=needs)
            for name in ("a", "b")
            for last, needs in (
                ("setup_baseline", ()),
                ("calibrate", (f"{name}.setup_baseline",)),
                ("derive_preset", (f"{name}.calibrate",)),
                ("second.calibrate", (f"{name}.calibrate",)),
            )
        ]
        return planned_run(tmp_path / "run", steps, Settings(min_free_disk_gb=0), models=models)

    return make


@pytest.fixture
def run(make_run: Callable[[str, int], RunDir]) -> RunDir:
    return make_run("gpu1_s", 1)


def attempt(run: RunDir, step: str, dag_run: str = "first") -> StepExit:
    return runner.run_step(run.root, step, dag_run=dag_run, lease=lease)


def exhaust(run: RunDir, step: str, dag_run: str = "first") -> None:
    """As Airflow does: try until no smaller batch is left."""
    plan = load_plan(run)
    for _ in range(10):
        assert attempt(run, step, dag_run) is StepExit.OUT_OF_MEMORY
        if not state.memory_try_left(run, plan, plan.step(step)):
            return
    raise AssertionError("retries never end")


def run_out(run: RunDir) -> None:
    """Calibration of model `a` needs two devices, and has ended with its smallest batch on one."""
    needs(run, A_CALIBRATE, 2)
    attempt(run, A_SETUP)
    exhaust(run, A_CALIBRATE)


def needs(run: RunDir, step: str, devices: int) -> None:
    (run.root / f"{step}.needs").write_text(str(devices))


def resume(run: RunDir, home: Home, dag_run: str = "second") -> list[str]:
    """Replan and run every step once; the ids of those that were not kept."""
    replan(run, load_plan(run), home, dag_run)
    before = {step.id: state.read_marker(run, step.id) for step in load_plan(run).steps}
    for step in load_plan(run).steps:
        attempt(run, step.id, dag_run)
    return [step for step, marker in before.items() if state.read_marker(run, step) != marker]


def test_a_model_without_memory_goes_on_in_the_next_lane(run: RunDir, home: Home) -> None:
    needs(run, A_CALIBRATE, 2)
    for step in (A_SETUP, "b.setup_baseline", B_CALIBRATE, "b.derive_preset", "b.second.calibrate"):
        assert attempt(run, step) is StepExit.OK
    exhaust(run, A_CALIBRATE)
    assert [record["lane"] for record in state.read_attempts(run, A_CALIBRATE)] == ["gpu1_s"] * 3
    planned = load_plan(run)
    frozen = run.plan.read_bytes()

    assert resume(run, home) == [A_CALIBRATE, "a.derive_preset", SECOND]
    plan = load_plan(run)
    assert (plan.model("a").lane, plan.model("a").devices, plan.model("b").lane) == ("gpu2_s", 2, "gpu1_s")
    assert (run.root / "made" / A_CALIBRATE).read_text() == "2 None"  # the plan's batch again
    assert run.plan.read_bytes() == frozen and plan.digest() == planned.digest()
    (change,) = read_json(run.lane_changes)["changes"]
    assert (change["model"], change["step"], change["from_lane"], change["to_lane"]) == (
        *("a", A_CALIBRATE, "gpu1_s", "gpu2_s"),
    )
    assert (change["dag_run"], change["batch"]) == ("second", 2)
    with (run.analysis / "memory_plan.csv").open() as file:
        rows = {row["task_id"]: row["required_gpus"] for row in csv.DictReader(file)}
    assert (rows[A_CALIBRATE], rows[B_CALIBRATE]) == ("2", "1")

    assert resume(run, home, "third") == []  # and nothing more to do
    assert len(load_plan(run).lane_changes) == 1


def test_what_was_made_on_fewer_devices_is_kept(run: RunDir, home: Home) -> None:
    """A later step runs out of memory."""
    attempt(run, A_SETUP)
    attempt(run, A_CALIBRATE)
    needs(run, SECOND, 2)
    exhaust(run, SECOND)
    before = load_plan(run)
    digests = {step.id: runner.input_digest(run, before, step) for step in before.steps if step.model == "a"}
    moved = replan(run, before, home, "second")
    assert {step.lane for step in moved.steps if step.model == "a"} == {"gpu2_s"}
    assert {step.id: runner.input_digest(run, moved, step) for step in moved.steps if step.model == "a"} == digests
    for step in (A_SETUP, A_CALIBRATE):
        assert runner.kept(run, moved, moved.step(step), attempt=1, dag_run="second") is not None
    assert attempt(run, SECOND, "second") is StepExit.OK


@pytest.mark.parametrize(("exit_", "moves"), [(StepExit.OUT_OF_MEMORY, True), (StepExit.OUT_OF_HOST_MEMORY, False)])
def test_devices_are_no_cure_for_a_lack_of_the_hosts_memory(
    run: RunDir, home: Home, exit_: StepExit, moves: bool
) -> None:
    run_out(run)
    state.Attempt(run, A_CALIBRATE, 3, "first", "gpu1_s").end(exit_, "MemoryError: CUDA, so words say nothing")
    (shortage,) = shortages(run, load_plan(run), home)
    assert (shortage.change is not None) == moves
    if not moves:
        assert "the host's memory" in shortage.text() and "INVARLOCK_EVAL_BATCH" in shortage.text()


def test_a_step_that_devices_may_help_decides(run: RunDir, home: Home) -> None:
    run_out(run)
    for _ in range(3):
        state.Attempt(run, SECOND, 1, "first", "gpu1_s").end(StepExit.OUT_OF_HOST_MEMORY, "MemoryError: ")
    (shortage,) = shortages(run, load_plan(run), home)
    assert shortage.step == A_CALIBRATE and shortage.change is not None


def test_a_finished_step_moves_nothing_whatever_its_attempts(run: RunDir, home: Home) -> None:
    for _ in range(3):
        state.Attempt(run, A_SETUP, 1, "first", "gpu1_s").end(StepExit.OUT_OF_MEMORY, "before it worked")
    attempt(run, A_SETUP)
    assert shortages(run, load_plan(run), home) == []


def test_each_lane_has_its_own_retries_and_the_last_has_no_next(
    run: RunDir, home: Home, pretend: Callable[[int], None]
) -> None:
    needs(run, A_CALIBRATE, 8)
    attempt(run, A_SETUP)
    for lane, following in (("gpu1_s", "gpu2_s"), ("gpu2_s", "gpu4_s")):
        assert load_plan(run).model("a").lane == lane
        exhaust(run, A_CALIBRATE)
        replan(run, load_plan(run), home, None)
        assert load_plan(run).model("a").lane == following
        replan(run, load_plan(run), home, None)  # not tried there yet
        assert load_plan(run).model("a").lane == following
    exhaust(run, A_CALIBRATE)
    records = state.read_attempts(run, A_CALIBRATE)
    assert [record["lane"] for record in records] == ["gpu1_s"] * 3 + ["gpu2_s"] * 3 + ["gpu4_s"] * 3
    assert [len(record["leased"]["devices"]) for record in records] == [1] * 3 + [2] * 3 + [4] * 3
    assert replan(run, load_plan(run), home, None).model("a").lane == "gpu4_s"
    (shortage,) = shortages(run, load_plan(run), home)
    assert "has 4 devices, this host gives the campaign 4" in shortage.text()
    assert "INVARLOCK_EVAL_BATCH or INVARLOCK_SEQ_LEN" in shortage.text()
    pretend(8)
    replan(run, load_plan(run), home, None)
    assert [change.to_lane for change in load_plan(run).lane_changes] == ["gpu2_s", "gpu4_s", "gpu8_s"]
    assert attempt(run, A_CALIBRATE) is StepExit.OK


def test_nothing_moves_while_a_smaller_batch_is_left(run: RunDir, home: Home) -> None:
    needs(run, A_CALIBRATE, 2)
    attempt(run, A_SETUP)
    for _ in range(2):
        attempt(run, A_CALIBRATE)
        assert shortages(run, load_plan(run), home) == []
    attempt(run, A_CALIBRATE)
    assert [shortage.step for shortage in shortages(run, load_plan(run), home)] == [A_CALIBRATE]


def test_other_failures_move_nothing(run: RunDir, home: Home) -> None:
    run_out(run)
    state.Attempt(run, A_CALIBRATE, 4, "first", "gpu1_s").end(StepExit.PERMANENT, "a defect came after")
    assert shortages(run, load_plan(run), home) == []


def test_a_wait_for_devices_hides_no_lack_of_memory(run: RunDir, home: Home) -> None:
    run_out(run)
    state.Attempt(run, A_CALIBRATE, 4, "first", "gpu1_s").end(StepExit.NO_DEVICE, "all in use")
    assert len(shortages(run, load_plan(run), home)) == 1


def test_a_pool_that_is_too_small_keeps_the_model(run: RunDir, home: Home) -> None:
    write_json(home.pools, {"cpu": 2, "gpu": 1})
    run_out(run)
    assert replan(run, load_plan(run), home, None).lane_changes == ()
    (shortage,) = shortages(run, load_plan(run), home)
    assert "pool gpu, which has 1" in shortage.text() and "evpack airflow setup" in shortage.text()
    assert not run.lane_changes.exists()


def test_devices_that_cannot_be_asked_keep_the_model(run: RunDir, home: Home, tmp_path: Path) -> None:
    run_out(run)
    (tmp_path / "gpus.json").write_text("{")
    (shortage,) = shortages(run, load_plan(run), home)
    assert shortage.change is None and SIMULATED_ENV in shortage.text()
    assert replan(run, load_plan(run), home, None).lane_changes == ()


def test_a_model_at_work_is_not_moved(run: RunDir, home: Home) -> None:
    run_out(run)
    state.Attempt(run, "a.derive_preset", 1, "another", "gpu1_s").begin()
    (shortage,) = shortages(run, load_plan(run), home)
    assert shortage.change is None and "a.derive_preset is running" in shortage.text()


def test_on_the_processor_there_is_nothing_to_move(make_run: Callable[[str, int], RunDir], home: Home) -> None:
    run = make_run("cpu_s", 0)
    needs(run, A_CALIBRATE, 1)
    attempt(run, A_SETUP)
    exhaust(run, A_CALIBRATE)
    assert replan(run, load_plan(run), home, None).lane_changes == ()
    (shortage,) = shortages(run, load_plan(run), home)
    assert "no devices to add" in shortage.text() and "INVARLOCK_EVAL_BATCH" in shortage.text()
    (run.root / f"{A_CALIBRATE}.needs").unlink()
    assert attempt(run, A_CALIBRATE, "second") is StepExit.OK  # a resume tries it again with the smallest batch
    assert (run.root / "made" / A_CALIBRATE).read_text() == "0 2"


def test_devices_are_no_cure_for_the_memory_of_the_host(run: RunDir, home: Home) -> None:
    needs(run, A_SETUP, 1)
    exhaust(run, A_SETUP)
    (shortage,) = shortages(run, load_plan(run), home)
    assert shortage.change is None and "host with more memory" in shortage.text()
    assert "EVAL_BATCH" not in shortage.text()


def test_records_from_before_lanes_were_recorded_count_for_the_planned_lane(run: RunDir, home: Home) -> None:
    needs(run, A_CALIBRATE, 8)
    attempt(run, A_SETUP)
    exhaust(run, A_CALIBRATE)
    for path in run.attempts(A_CALIBRATE).iterdir():
        write_json(path, {key: value for key, value in read_json(path).items() if key != "lane"})
    moved = replan(run, load_plan(run), home, None)
    assert moved.model("a").lane == "gpu2_s"
    assert state.lowered_batch(run, moved, moved.step(A_CALIBRATE)) is None
    assert replan(run, moved, home, None).model("a").lane == "gpu2_s"


def test_several_models_move_at_once(run: RunDir, home: Home) -> None:
    for name in ("a", "b"):
        needs(run, f"{name}.calibrate", 2)
        attempt(run, f"{name}.setup_baseline")
        exhaust(run, f"{name}.calibrate")
    moved = replan(run, load_plan(run), home, "second")
    assert [change.model for change in moved.lane_changes] == ["a", "b"]
    assert {model.lane for model in moved.models} == {"gpu2_s"}
    assert load_plan(run).models == moved.models


def test_words_for_both_ends() -> None:
    stays = Shortage("a.calibrate", stays=BadInput("the reason", "the mend"))
    assert "a.calibrate" in stays.text() and "the reason" in stays.text() and "the mend" in stays.text()

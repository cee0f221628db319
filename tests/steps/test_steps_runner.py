"""The step contract: needs, markers, redo, attempt records, exit classes. The functions here stand in for real work."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import indent

import pytest

from evpack import errors
from evpack.errors import NO_MEMORY, BadInput, StepExit, is_machine_fault
from evpack.files import read_json, write_json
from evpack.plan.model import StepPlan, StepType
from evpack.processes import start_of
from evpack.publishing import publishing
from evpack.rundir import RunDir
from evpack.runtime.failures import class_of
from evpack.settings import Settings
from evpack.steps import runner, state
from evpack.steps.base import StepContext
from tests.plans import model_plan, planned_run
from tests.waiting import DEADLINE_S

SETUP, CALIBRATE = "m.setup_baseline", "m.calibrate"


def write_number(ctx: StepContext) -> list[Path]:
    """Publish a directory that shows how often it was made and with which batch."""
    count = ctx.run.root / f"{ctx.step.id}.count"
    number = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(number))
    target = ctx.run.model("m").root / ctx.step.type.value
    with publishing(target) as part:
        (part / "number").write_text(f"{number} {ctx.batch}")
    return [target]


def fail(ctx: StepContext) -> list[Path]:
    raise FAILURES[(ctx.run.root / "failure").read_text()]


def publish_nothing(ctx: StepContext) -> list[Path]:
    return []


FAILURES: dict[str, BaseException] = {
    "bad": BadInput("x"),
    "damaged": errors.CheckpointError("shard 2 is truncated"),
    "oom": errors.OutOfMemory("no memory"),
    "memory": MemoryError(),
    "transient": errors.Transient("again"),
    "network": ConnectionResetError("peer"),
    "disk": OSError(errno.ENOSPC, "full"),
    "readonly": OSError(errno.EROFS, "ro"),
    "blocked": errors.Blocked("x"),
    "type": TypeError("x"),
    "row": IndexError("index out of range in self"),
    "missing": FileNotFoundError("x"),
    "value": ValueError("x"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A planned campaign of two steps whose work is `write_number`."""
    use(monkeypatch, "write_number")
    steps = (
        StepPlan(id=SETUP, type=StepType.SETUP_BASELINE, model="m", lane="cpu_s"),
        StepPlan(id=CALIBRATE, type=StepType.CALIBRATE, model="m", lane="cpu_s", needs=(SETUP,), timeout_s=1),
    )
    return planned_run(tmp_path / "run", steps, Settings(min_free_disk_gb=0), models=(model_plan(batch=32),))


def use(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setattr(runner, "STEP_FUNCTIONS", dict.fromkeys(StepType, f"{__name__}:{function}"))


def number(run: RunDir, step: str = "setup_baseline") -> str:
    return (run.root / "m" / step / "number").read_text()


def test_a_finished_step_is_kept_and_its_outputs_are_in_the_marker(run: RunDir) -> None:
    assert runner.run_step(run.root, SETUP, dag_run="r1") is StepExit.OK
    assert runner.run_step(run.root, SETUP, dag_run="r2") is StepExit.OK
    assert number(run) == "1 None"
    marker = read_json(run.marker(SETUP))
    assert list(marker["outputs"]) == ["m/setup_baseline/number"]
    assert state.step_state(run, SETUP) == "done"
    assert "done already" in run.task_log(SETUP).read_text()


def test_the_same_dag_run_with_a_higher_try_redoes_and_archives(run: RunDir) -> None:
    runner.run_step(run.root, SETUP, attempt=1, dag_run="r1")
    runner.run_step(run.root, SETUP, attempt=2, dag_run="r1")
    assert number(run) == "2 None"
    assert [path.read_text() for path in run.archive.rglob("number")] == ["1 None"]


def test_a_new_dag_run_keeps_what_is_valid_whatever_its_try(run: RunDir) -> None:
    runner.run_step(run.root, SETUP, attempt=1, dag_run="r1")
    runner.run_step(run.root, SETUP, attempt=2, dag_run="resumed")
    assert number(run) == "1 None"


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_outputs_that_changed_or_vanished_are_made_again(run: RunDir, damage: str) -> None:
    runner.run_step(run.root, SETUP)
    target = run.root / "m" / "setup_baseline" / "number"
    target.write_text("3 None") if damage == "change" else target.unlink()
    (run.root / "m" / "setup_baseline").rmdir() if damage == "remove" else None
    assert runner.run_step(run.root, SETUP) is StepExit.OK
    assert number(run) == "2 None"


def test_a_changed_need_makes_the_step_run_again(run: RunDir) -> None:
    runner.run_step(run.root, SETUP, attempt=1, dag_run="r1")
    runner.run_step(run.root, CALIBRATE, dag_run="r1")
    runner.run_step(run.root, SETUP, attempt=2, dag_run="r1")
    runner.run_step(run.root, CALIBRATE, dag_run="r2")
    assert number(run, "calibrate") == "2 None"


def test_a_step_without_its_needs_is_blocked(run: RunDir) -> None:
    assert runner.run_step(run.root, CALIBRATE) is StepExit.BLOCKED
    (record,) = state.read_attempts(run, CALIBRATE)
    assert record["class"] == "blocked"
    assert SETUP in record["error"]
    assert state.step_state(run, CALIBRATE) == "failed"
    assert not run.marker(CALIBRATE).exists()


@pytest.mark.parametrize(
    ("failure", "exit_"),
    [
        ("bad", StepExit.BAD_INPUT),
        ("damaged", StepExit.PERMANENT),
        ("oom", StepExit.OUT_OF_MEMORY),
        ("memory", StepExit.OUT_OF_HOST_MEMORY),
        ("transient", StepExit.TRANSIENT),
        ("network", StepExit.TRANSIENT),
        ("disk", StepExit.DISK),
        ("readonly", StepExit.DISK),
        ("blocked", StepExit.BLOCKED),
        ("type", StepExit.PERMANENT),
        ("row", StepExit.PERMANENT),
        ("missing", StepExit.PERMANENT),
        ("value", StepExit.TRANSIENT),
    ],
)
def test_failures_are_classified_by_type(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, failure: str, exit_: StepExit
) -> None:
    use(monkeypatch, "fail")
    (run.root / "failure").write_text(failure)
    assert runner.run_step(run.root, SETUP) is exit_
    (record,) = state.read_attempts(run, SETUP)
    assert record["exit"] == exit_
    assert record["peak_rss_bytes"] > 1_000_000
    assert not run.marker(SETUP).exists()
    assert [entry["task_id"] for entry in state.errors(run, runner.load_plan(run))] == [SETUP]


@pytest.mark.parametrize(
    ("error", "exit_"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 17),
        (RuntimeError("CUDA error: out of memory"), 11),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 11),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 17),
        (MemoryError(), 17),
        (OSError(errno.ENOSPC, "No space left"), 13),
        (RuntimeError("device-side assert triggered"), 12),
        (ValueError("out of memory"), 12),
        (ValueError("'fp9' is not a valid DType"), 10),
        (ValueError("Invalid configuration: hidden_size"), 10),
        (ValueError("Architecture not supported: X"), 10),
        (RuntimeError("Invalid configuration"), 12),
    ],
)
def test_what_lacks_memory_is_told_by_type_and_words(error: Exception, exit_: int) -> None:
    assert runner.classify(error) == exit_
    assert is_machine_fault(error) == (exit_ in NO_MEMORY)


def test_torch_says_that_the_host_has_no_memory() -> None:
    import torch

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert runner.classify(refused.value) is StepExit.OUT_OF_HOST_MEMORY


def test_out_of_memory_halves_the_batch_twice_at_most(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.root / "failure").write_text("oom")
    for expected in ("1 16", "2 8", "3 8"):
        use(monkeypatch, "fail")
        runner.run_step(run.root, SETUP)
        use(monkeypatch, "write_number")
        runner.run_step(run.root, SETUP)
        assert number(run) == expected
        state.archive_outputs(run, state.read_marker(run, SETUP))  # type: ignore[arg-type]


def test_publishing_nothing_is_a_defect(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "publish_nothing")
    assert runner.run_step(run.root, SETUP) is StepExit.PERMANENT


def test_a_directory_without_a_plan_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no plan"):
        runner.run_step(tmp_path, SETUP)


def test_an_unknown_step_is_bad_input(run: RunDir) -> None:
    with pytest.raises(BadInput, match=r"no step 'm\.nothing'"):
        runner.run_step(run.root, "m.nothing")


def test_progress_follows_markers_and_attempts(run: RunDir) -> None:
    plan = runner.load_plan(run)
    assert state.progress(run, plan)["status"] == "initializing"
    runner.run_step(run.root, SETUP)
    assert state.progress(run, plan) | {"updated_at": ""} == {
        "total": 2,
        "pending": 1,
        "running": 0,
        "completed": 1,
        "failed": 0,
        "progress_pct": 50.0,
        "status": "running",
        "updated_at": "",
    }
    runner.run_step(run.root, CALIBRATE)
    assert state.progress(run, plan)["status"] == "completed"


CHILD = """
import sys, time
from pathlib import Path
from evpack.publishing import publishing
from evpack.steps import runner
from evpack.plan.model import StepType
def work(ctx):
    with publishing(ctx.run.model("m").root / "slow") as part:
        (part / "half").write_text("x")
        print("working", flush=True)
        time.sleep(600)
sys.modules["child"] = sys.modules["__main__"]
runner.STEP_FUNCTIONS = dict.fromkeys(StepType, "child:work")
sys.exit(runner.main_step(Path(sys.argv[1]), sys.argv[2], 1, None))
"""


def child(run: RunDir, step: str, code: str = CHILD, **streams: int) -> subprocess.Popen[bytes]:
    """A process that runs a step and is at work. Unbuffered: nothing is read ahead of who asks for the rest."""
    command = [sys.executable, "-c", code, str(run.root), step]
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, **streams)
    assert process.stdout is not None
    assert any(b"working" in line for line in process.stdout)
    return process


def end(process: subprocess.Popen[bytes], told: bytes | None = None) -> str:
    """Wait for the end of a process; what else it put out."""
    return process.communicate(told, timeout=DEADLINE_S)[0].decode()


HANG = """
import collections, faulthandler, itertools, signal
alarm, limit, asked = signal.alarm, faulthandler.dump_traceback_later, {}
signal.alarm = lambda seconds: asked.update(alarm=seconds) or 0
faulthandler.dump_traceback_later = lambda *given, **named: asked.update(limit=(given, named))
def hang():
    print("working", flush=True)
    given, named = asked["limit"]
    limit(*given, **named)
    alarm(asked["alarm"])
    collections.deque(itertools.repeat(0), maxlen=0)
"""
"""Hangs where Python looks at no signal. The clocks that were set for it run from then on, however late that is."""


def test_sigterm_ends_a_step_and_leaves_nothing_half_written(run: RunDir) -> None:
    process = child(run, SETUP)
    assert state.step_state(run, SETUP) == "running"
    process.send_signal(signal.SIGTERM)
    end(process)
    assert process.returncode == StepExit.TRANSIENT
    assert list(run.model("m").root.iterdir()) == []
    assert state.read_attempts(run, SETUP)[0]["error"] == "terminated from outside"


def test_a_second_sigterm_does_not_break_the_end(run: RunDir) -> None:
    lines = '        print("working", flush=True)\n        time.sleep(600)\n'
    clean = "print('cleaning', flush=True); input(); print('cleaned', flush=True)"
    code = CHILD.replace(lines, f"        try:\n{indent(lines, '    ')}        finally:\n            {clean}\n")
    process = child(run, SETUP, code, stdin=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and any(b"cleaning" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    output = end(process, b"\n")  # it cleans up until it gets this line
    assert process.returncode == StepExit.TRANSIENT and "cleaned" in output
    assert list(run.model("m").root.iterdir()) == []
    assert state.read_attempts(run, SETUP)[0]["error"] == "terminated from outside"


def wait_for_ever(ctx: StepContext) -> list[Path]:
    while True:
        time.sleep(0.01)  # a signal that comes just before a long wait would not end it


def test_campaign_level_steps_have_time_limits_too(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = StepPlan(id="build_pack", type=StepType.BUILD_PACK, timeout_s=1)
    other = planned_run(tmp_path / "other", (step,), Settings(min_free_disk_gb=0), models=(model_plan(batch=32),))
    use(monkeypatch, "wait_for_ever")
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
    assert runner.run_step(other.root, "build_pack") is StepExit.TRANSIENT
    assert "exceeded its limit of 1 s" in state.read_attempts(other, "build_pack")[0]["error"]
    assert before == (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM))


def test_a_step_that_hangs_where_no_signal_reaches_it_is_ended_all_the_same(run: RunDir) -> None:
    runner.run_step(run.root, SETUP)
    code = HANG + CHILD.replace("time.sleep(600)", "hang()").replace("sys.exit(", "runner.HANG_S = 1\nsys.exit(")
    process = child(run, CALIBRATE, code, stderr=subprocess.STDOUT)
    output = end(process)
    assert process.returncode == 1 and class_of(1, output.splitlines())[0] is StepExit.TRANSIENT
    assert "Timeout (0:00:02)!" in output and "in work" in output  # and where it hung
    assert state.step_state(run, CALIBRATE) == "failed"


def test_devices_that_never_answer_hold_up_nobody_for_ever(tmp_path: Path) -> None:
    step = StepPlan(id=CALIBRATE, type=StepType.CALIBRATE, model="m", lane="gpu1_s")
    settings = Settings(min_free_disk_gb=0, lease_wait=0)
    run = planned_run(tmp_path / "run", (step,), settings, models=(model_plan(devices=1, lane="gpu1_s"),))
    code = f"{HANG}def lease(*_): hang()\n{CHILD}".replace("None))", "None, lease))")
    process = child(run, CALIBRATE, code.replace("sys.exit(", "runner.HANG_S = 1\nsys.exit("), stderr=subprocess.STDOUT)
    output = end(process)
    assert process.returncode == 1 and "Timeout (0:00:01)!" in output and "in lease" in output


def test_another_process_with_the_id_of_a_dead_one_runs_no_step(run: RunDir) -> None:
    attempt = state.Attempt(run, SETUP, 1, None)
    attempt.begin()
    (file,) = run.attempts(SETUP).iterdir()
    assert state.step_state(run, SETUP) == "running"
    write_json(file, {**read_json(file), "pid_start": start_of(1)})  # as if its id had been given to this process
    assert state.step_state(run, SETUP) == "failed"
    state.close_dead_attempts(run, SETUP, StepExit.TRANSIENT, "killed")
    assert [record["error"] for record in state.read_attempts(run, SETUP)] == ["killed"]


def test_an_attempt_that_lives_counts_whatever_came_after(run: RunDir) -> None:
    older, later = (state.Attempt(run, SETUP, number, None) for number in (1, 2))
    older.begin()
    later.started_at = "2999-01-01T00:00:00Z"
    later.end(StepExit.NO_DEVICE, "in use")
    assert state.step_state(run, SETUP) == "running"
    older.end(StepExit.TRANSIENT, "x")
    assert state.step_state(run, SETUP) == "waiting"


def test_sigkill_leaves_an_attempt_that_is_seen_as_failed(run: RunDir) -> None:
    process = child(run, SETUP)
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    assert state.step_state(run, SETUP) == "failed"
    assert not run.marker(SETUP).exists()


def test_the_time_limit_ends_a_step(run: RunDir) -> None:
    runner.run_step(run.root, SETUP)
    # The limit may be over before the work begins.
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(run.root), CALIBRATE], check=False, stdout=subprocess.DEVNULL
    )
    assert done.returncode == StepExit.TRANSIENT
    assert "exceeded its limit of 1 s" in state.read_attempts(run, CALIBRATE)[0]["error"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, StepExit.DISK), (errno.EIO, StepExit.TRANSIENT)])
def test_a_fault_of_the_file_system_around_a_step_is_classed_as_one_within(
    number: int, code: StepExit, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(run.root))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(runner, "run_step", broken)
    assert runner.main_step(run.root, SETUP, 1, None) == code
    assert str(run.root) in capsys.readouterr().err


def test_a_closing_step_by_hand_leaves_the_summaries(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert runner.main_step(run.root, SETUP, 1, None) == StepExit.OK
    assert not run.progress.exists()
    monkeypatch.setattr(runner, "ALWAYS_RUN", {SETUP})
    monkeypatch.setattr(runner, "run_step", lambda *_, **__: StepExit.PERMANENT)
    assert runner.main_step(run.root, SETUP, 1, None) == StepExit.PERMANENT
    assert read_json(run.progress)["completed"] == 1
    assert run.errors.is_file() and (run.analysis / "timeline.svg").is_file()

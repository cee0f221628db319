"""Leases: all or none, by UUID, freed by the kernel; what is remembered about devices that fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from evpack import errors
from evpack.errors import BadInput, BrokenContract, EvpackError, NoDevice, StepExit
from evpack.home import Home
from evpack.plan.health import Health, health_of
from evpack.runtime import gpu, leases
from evpack.runtime.gpu import Demand
from evpack.runtime.leases import claim, holder, known_devices, lease_devices, quarantine, release
from evpack.settings import Settings
from evpack.steps.base import Leased
from evpack.steps.runner import Terminated, TimedOut, classify
from evpack.steps.state import Attempt, read_attempts
from tests.runtime.conftest import MakeContext, Pretend
from tests.waiting import DEADLINE_S

WORKER = Path(__file__).with_name("lease_worker.py")
SETTINGS = Settings(gpu_cache_ttl=0)


def take(home: Home, count: int, locks: ExitStack) -> list[str]:
    devices, _ = claim(home, SETTINGS, Demand(count, 1, idle=True), locks, "s")
    return [device.uuid for device in devices]


# --- all or none -----------------------------------------------------------------------------------------------------
def test_devices_are_taken_all_or_none(home: Home, pretend: Pretend) -> None:
    pretend(count=4)
    with ExitStack() as first, ExitStack() as second:
        assert take(home, 3, first) == ["GPU-0", "GPU-1", "GPU-2"]
        assert take(home, 2, second) == []
        assert take(home, 1, second) == ["GPU-3"]  # the failed claim kept nothing
        first.close()
        assert take(home, 2, first) == ["GPU-0", "GPU-1"]


def test_the_step_sees_its_devices_and_no_other(
    home: Home, pretend: Pretend, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    real = _real(2)
    monkeypatch.setattr(leases, "cached_devices", lambda *_: real)
    with lease_devices(make_context(2), 2) as leased:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
        assert leased.devices == ("GPU-0", "GPU-1") and not leased.simulated
        found = holder(home, "GPU-0")
        assert found is not None and (found["step"], found["pid"]) == ("m.calibrate", os.getpid())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert holder(home, "GPU-0") is None


def _real(count: int) -> list[Any]:
    from evpack.plan.nvml import DeviceFacts

    return [DeviceFacts(f"GPU-{index}", index, 80, 80, 0, None) for index in range(count)]


def test_pretended_devices_leave_the_real_ones_unseen(pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=1)
    with lease_devices(make_context(), 1) as leased:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert leased.simulated


def test_cuda_must_not_run_yet(pretend: Pretend, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(count=1)
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(BrokenContract, match="initialised"), lease_devices(make_context(), 1):
        pass


# --- waiting ---------------------------------------------------------------------------------------------------------
def test_waiting_ends_with_an_exit_of_its_own(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend({"processes": [1]}, {"used_gb": 75}, {})
    with ExitStack() as locks:
        assert take(home, 1, locks) == ["GPU-2"]
        words = r"GPU-0: 1 other.*GPU-1: 5\.0 GB free.*GPU-2: leased"
        with pytest.raises(NoDevice, match=words) as caught, lease_devices(make_context(), 1):
            pass
    assert caught.value.exit_code == StepExit.NO_DEVICE


def test_a_waiting_step_gets_what_becomes_free(
    home: Home, pretend: Pretend, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(count=1)
    locks = ExitStack()
    take(home, 1, locks)
    pause = time.sleep

    def becomes_free(_: float) -> None:
        locks.close()
        pause(0.01)

    monkeypatch.setattr(leases.time, "sleep", becomes_free)
    with lease_devices(make_context(lease_wait=DEADLINE_S), 1) as leased:
        assert leased.devices == ("GPU-0",) and leased.waited_s > 0


def test_what_was_busy_is_looked_at_again(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend({"processes": [1]}, {"used_gb": 75})
    ctx = make_context(gpu_cache_ttl=1e6)
    with pytest.raises(NoDevice), lease_devices(ctx, 1):
        pass
    pretend({}, {"used_gb": 75})
    with lease_devices(ctx, 1):
        pass


@pytest.mark.parametrize("now", [{"used_gb": 79}, {"processes": [1]}, {"health": "GPU is lost"}])
def test_no_device_is_taken_on_what_it_said_a_moment_ago(now: dict[str, Any], home: Home, pretend: Pretend) -> None:
    settings, demand = Settings(gpu_cache_ttl=1e6), Demand(1, 10, idle=True)
    pretend({}, {"processes": [1]})
    with ExitStack() as locks:
        assert claim(home, settings, demand, locks, "s")[0]
    pretend(now, {"processes": [1]})
    with ExitStack() as locks:
        assert claim(home, settings, demand, locks, "s")[0] == []
    assert holder(home, "GPU-0") is None


def test_who_waits_asks_devices_no_more_often_than_it_must(
    home: Home, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend({"processes": [1]}, {"processes": [1]})
    settings, asked = Settings(gpu_cache_ttl=1e6), []
    read = gpu.read_devices
    monkeypatch.setattr(gpu, "read_devices", lambda environ: asked.append(1) or read(environ))
    with ExitStack() as locks:
        for _ in range(9):
            assert claim(home, settings, Demand(1, 1, idle=True), locks, "s")[0] == []
        assert len(asked) == 1
        claim(home, settings, Demand(1, 1, idle=True), locks, "s", last=True)
        assert len(asked) == 2


def test_a_display_on_the_only_device_is_no_reason_to_wait(pretend: Pretend, make_context: MakeContext) -> None:
    pretend({"memory_gb": 24, "used_gb": 1.5, "processes": [1]})
    with lease_devices(make_context(), 1) as leased:
        assert leased.devices == ("GPU-0",)


def test_one_device_of_a_server_is_shared_with_nobody(pretend: Pretend, make_context: MakeContext) -> None:
    pretend({}, {"processes": [1]}, {"used_gb": 75})
    for named, why in (("1", "1 other processes"), ("2", r"5\.0 GB free, 10\.0 GB are asked for")):
        ctx = make_context(scoring_gb=4.0, cuda_visible_devices=(named,))
        with pytest.raises(NoDevice, match=why), lease_devices(ctx, 1):
            pass


def test_a_pool_that_never_can_is_no_reason_to_wait(pretend: Pretend, make_context: MakeContext) -> None:
    pretend({}, {"memory_gb": 5}, {"health": "ecc"})
    ctx = make_context(2, lease_wait=1e6)
    with pytest.raises(EvpackError, match="2 devices are needed, 1 of 3") as caught, lease_devices(ctx, 2):
        pass
    assert caught.value.exit_code == StepExit.PERMANENT


# --- failures and quarantine -----------------------------------------------------------------------------------------
def fail(ctx: Any, problem: BaseException) -> None:
    with pytest.raises(type(problem)), lease_devices(ctx, 1):
        raise problem


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."),
        RuntimeError("No CUDA GPUs are available"),
        errors.DeviceFault("the plan gives 1 devices, this process sees none"),
    ],
)
def test_a_broken_device_is_quarantined_and_work_goes_on_elsewhere(
    problem: Exception, home: Home, pretend: Pretend, make_context: MakeContext
) -> None:
    pretend(count=2)
    fail(make_context(), problem)
    reason = health_of(home, "GPU-0").quarantined
    assert reason is not None and "m.calibrate" in reason and "\n" not in reason
    with lease_devices(make_context(), 1) as leased:
        assert leased.devices == ("GPU-1",)
    release(home, "GPU-0")
    with lease_devices(make_context(), 1) as leased:
        assert leased.devices == ("GPU-0",)


ASSERT = "CUDA error: device-side assert triggered"


def attempted(ctx: Any, problem: Exception, dag_run: str | None = None) -> tuple[StepExit, tuple[str, ...]]:
    """An attempt of a step that fails on its device: its class, and what it held."""
    record, leased = Attempt(ctx.run, ctx.step.id, 1, dag_run), Leased()
    record.begin()
    try:
        with lease_devices(ctx, 1) as leased:
            record.begin_on(leased)
            raise problem
    except Exception as error:
        record.end(classify(error), str(error))
        return classify(error), leased.devices
    raise AssertionError


def test_a_step_that_asserts_on_a_second_device_is_the_cause_itself(
    home: Home, pretend: Pretend, make_context: MakeContext
) -> None:
    pretend(count=4)
    ctx = make_context()
    assert attempted(ctx, RuntimeError(ASSERT)) == (StepExit.TRANSIENT, ("GPU-0",))
    assert attempted(ctx, RuntimeError("something")) == (StepExit.TRANSIENT, ("GPU-1",))
    assert attempted(ctx, RuntimeError(ASSERT)) == (StepExit.PERMANENT, ("GPU-2",))
    assert [bool(health_of(home, f"GPU-{n}").quarantined) for n in range(4)] == [True, False, False, False]
    assert "as on GPU-0 before" in str(read_attempts(ctx.run, ctx.step.id)[-1]["error"])


def test_what_was_mended_since_blames_no_step(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=6)
    ctx = make_context()
    first, second = RuntimeError(ASSERT), RuntimeError("an illegal memory access was encountered")
    assert attempted(ctx, first, "one") == (StepExit.TRANSIENT, ("GPU-0",))
    assert attempted(ctx, second, "two") == (StepExit.TRANSIENT, ("GPU-1",))  # the model was mended, then resumed
    release(home, "GPU-1")
    pretend({"processes": [1]}, {"processes": [1]}, count=4)  # what was released serves somebody else
    assert attempted(ctx, first, "two") == (StepExit.TRANSIENT, ("GPU-2",))
    assert attempted(ctx, second, "two") == (StepExit.PERMANENT, ("GPU-3",))
    assert "as on GPU-2 before" in str(read_attempts(ctx.run, ctx.step.id)[-1]["error"])


def test_one_sick_device_is_not_the_steps_fault(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=2)
    ctx = make_context()
    for _ in range(2):  # released by somebody who took it for mended
        assert attempted(ctx, RuntimeError(ASSERT)) == (StepExit.TRANSIENT, ("GPU-0",))
        release(home, "GPU-0")
    attempted(ctx, RuntimeError(ASSERT))
    assert attempted(ctx, RuntimeError("uncorrectable ECC error")) == (StepExit.TRANSIENT, ("GPU-1",))
    assert health_of(home, "GPU-1").quarantined


def test_what_failed_a_step_does_not_get_it_again_at_once(
    home: Home, pretend: Pretend, make_context: MakeContext
) -> None:
    pretend(count=3)
    served = [attempted(make_context(), RuntimeError("something"))[1] for _ in range(4)]
    assert served == [("GPU-0",), ("GPU-1",), ("GPU-2",), ("GPU-0",)]


def test_a_device_that_falls_sick_while_in_use(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=2)
    with pytest.raises(ConnectionError), lease_devices(make_context(), 1):
        pretend({"health": "Xid 48"}, {})
        raise ConnectionError
    assert "Xid 48" in str(health_of(home, "GPU-0").quarantined)


def test_failures_in_a_row(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=1)
    ctx = make_context(worker_max_failures=3)
    for _ in range(2):
        fail(ctx, RuntimeError("something"))
    assert health_of(home, "GPU-0").failures == 2
    with lease_devices(ctx, 1):
        pass
    assert health_of(home, "GPU-0").failures == 0  # a success ends the row
    for _ in range(2):
        fail(ctx, RuntimeError("something"))
    fail(ctx, TimedOut())
    assert "3 failures in a row" in str(health_of(home, "GPU-0").quarantined)


@pytest.mark.parametrize(
    "problem",
    [
        errors.OutOfMemory("x"),
        errors.CheckpointError("x"),
        errors.DiskFull("x"),
        BadInput("x"),
        TypeError("x"),
        Terminated(),
        KeyboardInterrupt(),
    ],
)
def test_what_says_nothing_about_the_device(
    problem: BaseException, home: Home, pretend: Pretend, make_context: MakeContext
) -> None:
    pretend(count=1)
    ctx = make_context(worker_max_failures=1)
    fail(ctx, problem)
    assert health_of(home, "GPU-0") == Health()


def test_a_quarantine_outlives_whatever_the_holder_then_does(
    home: Home, pretend: Pretend, make_context: MakeContext
) -> None:
    pretend(count=2)
    ctx = make_context()
    fail(ctx, RuntimeError("something"))
    for end in (None, RuntimeError("something")):
        with contextlib.suppress(RuntimeError), lease_devices(ctx, 1) as leased:
            (uuid,) = leased.devices
            quarantine(home, uuid, "Xid 79", 1)  # seen by who claimed devices meanwhile; nothing is wrong any more
            if end:
                raise end
        assert health_of(home, uuid).quarantined == "Xid 79"


def test_a_corrupt_record_stays_a_quarantine(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=1)
    with contextlib.suppress(RuntimeError), lease_devices(make_context(), 1):
        (home.leases / "GPU-0.json").write_text("{")
        raise RuntimeError("something")
    assert health_of(home, "GPU-0").quarantined is not None


@pytest.mark.parametrize("broken", ["cached_devices", "remember", "notify"])
def test_what_cannot_be_noted_hides_nothing(
    broken: str, home: Home, pretend: Pretend, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(count=1)

    def trouble(*_: Any) -> Any:
        raise ValueError("embedded null byte")

    with pytest.raises(errors.DeviceFault, match="sees none"), lease_devices(make_context(), 1):
        monkeypatch.setattr(leases, broken, trouble)
        raise errors.DeviceFault("this process sees none")
    if broken != "remember":
        assert health_of(home, "GPU-0").quarantined is not None


def test_a_fault_without_words_is_one(home: Home, pretend: Pretend, make_context: MakeContext) -> None:
    pretend(count=1)
    fail(make_context(), errors.DeviceFault(" "))
    assert "DeviceFault" in str(health_of(home, "GPU-0").quarantined)


def test_a_link_among_the_locks_is_not_followed(home: Home, pretend: Pretend, tmp_path: Path) -> None:
    pretend(count=1)
    home.leases.mkdir(parents=True)
    (tmp_path / "precious").write_text("kept")
    (home.leases / "GPU-0.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"), ExitStack() as locks:
        take(home, 1, locks)
    assert (tmp_path / "precious").read_text() == "kept"


def test_what_else_lies_among_the_records_is_no_device(home: Home) -> None:
    quarantine(home, "GPU-0", "x")
    (home.leases / "GPU-0 (copy).json").write_text("{}")
    (home.leases / "GPU-1.json").symlink_to("GPU-1.json")
    assert known_devices(home) == ["GPU-0", "GPU-1"]
    assert "cannot be read" in str(health_of(home, "GPU-1").quarantined)
    release(home, "GPU-1")
    assert known_devices(home) == ["GPU-0"]


def test_an_unreadable_record_is_a_quarantine(home: Home) -> None:
    quarantine(home, "GPU-0", "x")
    (home.leases / "GPU-0.json").write_text("{")
    assert health_of(home, "GPU-0").quarantined is not None
    release(home, "GPU-0")
    with pytest.raises(BadInput, match="not quarantined"):
        release(home, "GPU-0")
    with pytest.raises(BadInput):
        release(home, "../x")


# --- many processes --------------------------------------------------------------------------------------------------
def test_competing_processes_never_share_a_device_and_sigkill_loses_none(home: Home, pretend: Pretend) -> None:
    """Each worker takes 1 to 3 of 5 devices again and again and marks each with a file that must not be there yet.

    Others hold one until they are killed. They leave their marks, so a mark names its process: that of a live process
    is a double booking.
    """
    pretend(count=5)
    marks = home.root / "marks"
    marks.mkdir(parents=True)
    environ = {**os.environ, "EVPACK_HOME": str(home.root)}

    def start(seed: int, rounds: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(WORKER), str(marks), str(seed), str(rounds)]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    forever = [start(seed, 0) for seed in range(4)]
    counted = [start(100 + seed, 25) for seed in range(6)]
    try:
        for victim in forever:
            assert victim.stdout is not None and victim.stdout.readline().startswith("holding")
            victim.send_signal(signal.SIGKILL)
        answers = [worker.communicate(timeout=DEADLINE_S)[0].splitlines() for worker in counted]
    finally:
        for worker in (*forever, *counted):
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
            if worker.stdout:
                worker.stdout.close()
    assert [worker.returncode for worker in counted] == [0] * len(counted), answers
    assert all(lines[-1] == "done 25" for lines in answers)
    with ExitStack() as locks:
        assert len(take(home, 5, locks)) == 5  # none lost
        assert holder(home, "GPU-4") is not None


def test_the_lock_files_text_may_be_anything(home: Home, pretend: Pretend) -> None:
    pretend(count=1)
    with ExitStack() as locks:
        take(home, 1, locks)
        assert json.loads((home.leases / "GPU-0.lock").read_text())["step"] == "s"
        (home.leases / "GPU-0.lock").write_text("[")
        assert holder(home, "GPU-0") == {}


# --- the command -----------------------------------------------------------------------------------------------------
def evpack(*arguments: str) -> str:
    from evpack.cli.main import build_app

    result = CliRunner().invoke(build_app(), list(arguments))
    assert result.exit_code == 0, result
    return result.output


def test_devices_command(home: Home, pretend: Pretend) -> None:
    pretend({}, {"health": "ecc"}, {})
    quarantine(home, "GPU-2", "assert")
    quarantine(home, "GPU-gone", "lost")
    with ExitStack() as locks:
        take(home, 1, locks)
        first, second, third, gone = evpack("devices", "list").splitlines()
    assert "(pretended)" in first and "80.0 of 80.0 GB" in first and f"held by s (process {os.getpid()})" in first
    assert "ecc" in second
    assert "assert" in third
    assert "not on this host" in gone and "lost" in gone
    assert "was quarantined: assert" in evpack("devices", "release", "GPU-2")
    assert evpack("devices", "list").splitlines()[2].endswith("free")


def test_a_host_without_devices(home: Home, pretend: Pretend) -> None:
    pretend()
    assert evpack("devices", "list") == evpack("devices") == "no devices\n"

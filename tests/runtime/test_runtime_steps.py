"""Steps on devices: the runner leases, the attempt says which, the time limit stands still while a step waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import StepExit
from evpack.files import write_json
from evpack.home import Home
from evpack.plan.model import StepType
from evpack.rundir import RunDir
from evpack.runtime.gpu import Demand
from evpack.runtime.leases import claim, holder, lease_devices
from evpack.settings import Settings
from evpack.steps import runner, state
from evpack.steps.base import Leased, StepContext
from tests.runtime.conftest import MakeContext, Pretend
from tests.waiting import DEADLINE_S

CALIBRATE = "m.calibrate"


def work(ctx: StepContext) -> list[Path]:
    file = ctx.run.root / "seen"
    file.write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {ctx.leased.devices} {ctx.leased.simulated}")
    return [file]


@pytest.fixture
def planned(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a campaign whose calibrate step needs devices; keyword arguments are settings."""

    def make(devices: int = 1, **settings: Any) -> RunDir:
        ctx = make_context(devices, **settings)
        write_json(ctx.run.settings, ctx.settings.to_json())
        write_json(ctx.run.plan, ctx.plan.to_json())
        return ctx.run

    monkeypatch.setattr(runner, "STEP_FUNCTIONS", dict.fromkeys(StepType, f"{__name__}:work"))
    return make


def last(run: RunDir) -> dict[str, Any]:
    return state.read_attempts(run, CALIBRATE)[-1]


def test_a_step_runs_on_its_devices(planned: Any, home: Home, pretend: Pretend) -> None:
    pretend(count=3)
    run = planned(2)
    assert runner.run_step(run.root, CALIBRATE, lease=lease_devices) is StepExit.OK
    assert (run.root / "seen").read_text() == " ('GPU-0', 'GPU-1') True"
    leased = last(run)["leased"]
    assert (leased["devices"], leased["simulated"]) == (["GPU-0", "GPU-1"], True)
    assert holder(home, "GPU-0") is None


def test_without_devices_nothing_is_leased(planned: Any) -> None:
    run = planned(0)
    assert runner.run_step(run.root, CALIBRATE) is StepExit.OK
    assert last(run)["leased"] is None


def test_a_step_that_needs_devices_never_runs_without_a_lease(planned: Any) -> None:
    run = planned(1)
    assert runner.run_step(run.root, CALIBRATE) is StepExit.PERMANENT
    assert not (run.root / "seen").exists()


def test_no_device_is_no_failure(planned: Any, home: Home, pretend: Pretend) -> None:
    pretend(count=1)
    run = planned(1)
    with ExitStack() as locks:
        claim(home, Settings(gpu_cache_ttl=0), Demand(1, 1, idle=True), locks, "other")
        assert runner.run_step(run.root, CALIBRATE, lease=lease_devices) is StepExit.NO_DEVICE
    plan = runner.load_plan(run)
    assert state.step_state(run, CALIBRATE) == "waiting"
    assert state.errors(run, plan) == []
    assert runner.run_step(run.root, CALIBRATE, lease=lease_devices) is StepExit.OK
    assert runner.run_step(run.root, CALIBRATE) is StepExit.OK  # done already: no device is asked for


def test_waiting_is_not_counted_in_the_time_limit(planned: Any) -> None:
    run = planned(1)
    seen = []

    @contextmanager
    def lease(ctx: StepContext, count: int) -> Any:
        seen.append(signal.alarm(0))  # nothing runs while the step waits
        yield Leased(("GPU-0",), simulated=True)

    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        signal.alarm(100_000)
        assert runner.run_step(run.root, CALIBRATE, lease=lease) is StepExit.OK
        assert seen == [0]
        assert 90_000 < signal.alarm(0) <= 100_000
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


SLEEPER = """
import sys, time
from pathlib import Path
from evpack.runtime.leases import lease_devices
from evpack.plan.model import StepType
from evpack.steps import runner
def work(ctx):
    print("working", flush=True)
    time.sleep(600)
sys.modules["sleeper"] = sys.modules["__main__"]
runner.STEP_FUNCTIONS = dict.fromkeys(StepType, "sleeper:work")
sys.exit(runner.main_step(Path(sys.argv[1]), "m.calibrate", 1, None, lease_devices))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_step_gives_its_devices_back(
    number: signal.Signals, planned: Any, home: Home, pretend: Pretend
) -> None:
    pretend(count=1)
    run = planned(1)
    child = subprocess.Popen([sys.executable, "-c", SLEEPER, str(run.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert any(line.startswith("working") for line in child.stdout)
        found = holder(home, "GPU-0")
        assert found is not None and found["pid"] == child.pid
        child.send_signal(number)
        assert child.wait(timeout=DEADLINE_S) == (StepExit.TRANSIENT if number is signal.SIGTERM else -number)
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    assert holder(home, "GPU-0") is None
    with ExitStack() as locks:
        assert claim(home, Settings(gpu_cache_ttl=0), Demand(1, 1, idle=True), locks, "next")[0]

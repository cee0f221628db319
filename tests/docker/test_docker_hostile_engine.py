"""A container that means harm, on a real engine: it fills logs, ignores its end, leaves traps for who reads next."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from evpack.errors import StepExit
from evpack.home import Home
from evpack.runtime import docker_engine
from evpack.runtime.docker_engine import ours
from evpack.runtime.docker_spec import ContainerLimits
from evpack.runtime.docker_step import ContainerWork
from evpack.steps.runner import run_step
from evpack.steps.state import read_attempts, read_marker
from tests.docker import sleeper
from tests.docker.conftest import Plan, Run
from tests.docker.test_docker_engine import SETUP

pytestmark = pytest.mark.docker

TRAPS = """
import os, pathlib, sys
run, outbox = pathlib.Path(sys.argv[sys.argv.index("step") + 1]), pathlib.Path(sys.argv[sys.argv.index("--outbox") + 1])
os.write(1, b"x" * 300_000)
print("\\nflooding", flush=True)
for number in range(20_000):
    print("f" * 99)
os.mkfifo(outbox / "result.json")
os.symlink(run / "state", run / "fixture" / "reports")
"""

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("asleep", flush=True)
time.sleep(600)
"""


def test_traps_are_stepped_over(
    plan: Plan, in_container: Run, deployment: Home, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan()
    with monkeypatch.context() as hostile:
        hostile.setattr(docker_engine, "MAX_OUTPUT", 10**6)
        sleeper.instead(hostile, TRAPS)
        assert in_container(run, SETUP) is StepExit.PERMANENT
    assert "left no result" in str(read_attempts(run, SETUP)[-1]["error"]) and read_marker(run, SETUP) is None
    log = run.task_log(SETUP).read_text()
    assert "flooding" in log and "left out" in log and len(log) < 3 * 10**6
    assert list((run.archive / SETUP).glob("*")) == [] and ours(engine, deployment) == []
    assert in_container(run, SETUP) is StepExit.OK  # the baseline's place is its own; the next step's is not
    assert in_container(run, "fixture.calibrate") is StepExit.PERMANENT
    assert "reports, where step" in str(read_attempts(run, "fixture.calibrate")[-1]["error"])
    assert not (run.root / "state" / "calibration").exists()


def test_a_container_that_ignores_its_end_is_gone_all_the_same(
    plan: Plan, engine: Any, limits: ContainerLimits, deployment: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, work = plan(), ContainerWork(lambda: (engine, limits), {})
    sleeper.instead(monkeypatch, DEAF)
    ends: list[StepExit] = []
    task = threading.Thread(target=lambda: ends.append(run_step(run.root, SETUP, work=work)))
    task.start()
    sleeper.until_asleep(run, SETUP)
    stops = [threading.Thread(target=work.stop) for _ in range(2)]  # asked twice
    for stop in stops:
        stop.start()
    for thread in (*stops, task):
        thread.join()
    assert ends == [StepExit.TRANSIENT] and ours(engine, deployment) == []

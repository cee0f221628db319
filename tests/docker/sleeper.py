"""A step that computes for ever, in a container; as a program, the task that looks after it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from evpack.errors import StepExit
from evpack.rundir import RunDir
from evpack.runtime import docker_step
from evpack.runtime.docker_engine import connect
from evpack.runtime.docker_spec import ContainerLimits, ContainerSpec, step_container
from evpack.runtime.docker_step import ContainerWork
from evpack.steps.runner import run_step
from evpack.steps.state import read_attempts
from tests.waiting import until

SLEEP = """
import time
import evpack.steps.runner as runner
from evpack.cli.main import main

def sleep(ctx):
    print("asleep on", *ctx.leased.devices, flush=True)
    time.sleep(600)

runner._function = lambda type_: sleep
main()
"""


def instead(monkeypatch: Any, script: str) -> None:
    """Have the containers of steps run a script with the command's arguments in place of the step."""

    def changed(*args: Any, **kwargs: Any) -> ContainerSpec:
        return replace(step_container(*args, **kwargs), entrypoint=["tini", "-g", "--", "python3", "-c", script])

    monkeypatch.setattr(docker_step, "step_container", changed)


class Patch:
    """What `instead` needs of pytest's monkeypatch, where there is none."""

    setattr = staticmethod(setattr)


def until_asleep(run: RunDir, step: str, device: str = "") -> None:
    """Wait until a step sleeps in its container, on a device where one is named. It must not end before."""

    def asleep() -> bool:
        ended = [record for record in read_attempts(run, step) if record["class"] != "running"]
        assert not ended, ended
        log = run.task_log(step)
        lines = log.read_text().splitlines() if log.is_file() else []
        return any("asleep" in line and device in line for line in lines)

    until(asleep)


def main() -> StepExit:
    """Look after one sleeping step: run directory, step id, image."""
    run, step, image = sys.argv[1:]
    instead(Patch, SLEEP)
    work = ContainerWork(lambda: (connect(), ContainerLimits(image, 10**9, 10**7)), {})
    return run_step(Path(run), step, work=work)


if __name__ == "__main__":
    main()

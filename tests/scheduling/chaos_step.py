"""`evpack step` under attack: before its work it may be told to run out of memory, and it bears witness to its devices.

Orders are files in EVPACK_CHAOS/orders, each obeyed once. A step that computes on a device locks the device's file in
EVPACK_CHAOS/witness, which the kernel unlocks when the step ends however that may be; whoever finds it locked writes a
violation. DAG files call `attack`; every step that Airflow starts afterwards, in whatever runtime, runs this program.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from evpack.errors import OutOfMemory
from evpack.plan.memory import SCORING
from evpack.steps import runner
from evpack.steps.base import StepContext

CHAOS_ENV = "EVPACK_CHAOS"
CHAOS = Path(os.environ[CHAOS_ENV])
ORDERS, WITNESS, VIOLATIONS = PLACES = (CHAOS / "orders", CHAOS / "witness", CHAOS / "violations")
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 60 << 20
"""Less than importing torch takes."""


def can_starve() -> bool:
    """Whether this process may limit its own memory."""
    return os.access(MEMORY_GROUPS / "cgroup.procs", os.W_OK)


@cache
def attack() -> None:
    """Have the processes and containers of steps run this program; once, however often DAG files are read."""
    from evpack.runtime import process
    from evpack.runtime.choice import DOCKER, chosen_runtime

    command = process.step_command

    def attacked_command(*given: Any, **named: Any) -> list[str]:
        words = command(*given, **named)
        return [sys.executable, __file__, *words[words.index("step") :]]

    process.step_command = attacked_command
    if chosen_runtime() == DOCKER:
        _attack_containers()


def _attack_containers() -> None:
    """Containers see the places of orders, and are themselves what has too little memory."""
    from evpack.runtime import docker_step
    from evpack.runtime.docker_spec import ContainerSpec, Mount

    container = docker_step.step_container

    def attacked_container(*given: Any, **named: Any) -> ContainerSpec:
        spec, step = container(*given, **named), given[2]
        starved = step.type in SCORING and ordered("starve")
        return replace(
            spec,
            entrypoint=["tini", "-g", "--", "python3", __file__],
            environment=spec.environment | {CHAOS_ENV: str(CHAOS)},
            mounts=[*spec.mounts, Mount(Path(__file__)), *(Mount(place, writable=True) for place in PLACES)],
            limits=replace(spec.limits, memory_bytes=LIMIT) if starved else spec.limits,
        )

    docker_step.step_container = attacked_container


def ordered(name: str) -> bool:
    try:
        (ORDERS / name).unlink()
    except FileNotFoundError:
        return False
    return True


def starve() -> None:
    """Enter a control group that has less memory than the step needs: the kernel kills this process."""
    group = MEMORY_GROUPS / f"evpack-chaos-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def witness(device: str, step: str, held: ExitStack) -> None:
    handle = held.enter_context((WITNESS / device).open("a+"))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (VIOLATIONS / f"{device}-{step}").touch()


def attacked(real: Callable[..., Any]) -> Callable[..., Any]:
    def function(type_: Any) -> Callable[[StepContext], list[Path]]:
        def work(ctx: StepContext) -> list[Path]:
            with ExitStack() as held:
                for device in ctx.leased.devices:
                    witness(device, ctx.step.id, held)
                if ctx.step.type in SCORING and ordered("oom"):
                    raise OutOfMemory("the device has no memory left (as ordered)")
                if ctx.step.type in SCORING and can_starve() and ordered("starve"):
                    starve()
                return real(type_)(ctx)

        return work

    return function


if __name__ == "__main__":
    from evpack.cli.main import main

    runner._function = attacked(runner._function)
    main()

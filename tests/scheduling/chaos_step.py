"""`evpack step` under attack: before its work it may be told to run out of memory, and it bears witness to its devices.

Orders are files in EVPACK_CHAOS/orders, each obeyed once. While a step computes on a device, a file in
EVPACK_CHAOS/witness names its process; whoever finds the file of another living process there writes a violation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evpack.errors import OutOfMemory
from evpack.plan.memory import SCORING
from evpack.runtime.leases import lease_devices
from evpack.steps import runner
from evpack.steps.base import StepContext

CHAOS = Path(os.environ["EVPACK_CHAOS"])
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 60 << 20
"""Less than importing torch takes."""


def ordered(name: str) -> bool:
    try:
        (CHAOS / "orders" / name).unlink()
    except FileNotFoundError:
        return False
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def starve() -> None:
    """Enter a control group that has less memory than the step needs: the kernel kills this process."""
    group = MEMORY_GROUPS / f"evpack-chaos-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def attacked(real: Callable[..., Any]) -> Callable[..., Any]:
    def function(type_: Any) -> Callable[[StepContext], list[Path]]:
        def work(ctx: StepContext) -> list[Path]:
            files = [CHAOS / "witness" / device for device in ctx.leased.devices]
            for file in files:
                if file.exists() and alive(int(file.read_text() or "0")):
                    (CHAOS / "violations" / f"{file.name}-{os.getpid()}").write_text(file.read_text())
                file.write_text(str(os.getpid()))
            try:
                if ctx.step.type in SCORING and ordered("oom"):
                    raise OutOfMemory("the device has no memory left (as ordered)")
                if ctx.step.type in SCORING and ordered("starve"):
                    starve()
                return real(type_)(ctx)
            finally:
                for file in files:
                    file.unlink(missing_ok=True)

        return work

    return function


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("step_id")
    parser.add_argument("--try", dest="attempt", type=int)
    parser.add_argument("--dag-run")
    given = parser.parse_args()
    runner._function = attacked(runner._function)
    sys.exit(runner.main_step(given.run_dir, given.step_id, given.attempt, given.dag_run, lease_devices))

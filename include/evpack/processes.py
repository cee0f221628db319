"""Which process is meant, long after it was noted: ids are given again, and times of start move with the clock.

And how signals end this one, and how many at once have a core each.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_UNSEEN = ""
"""Start of a process that is there but shows nothing of itself (hidden, or a system without /proc)."""

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Places in /proc/<pid>/stat behind the name: state, and start in clock ticks since the system booted (proc(5))."""


def cores() -> int:
    """Cores this process may use; all of the host's where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_of(pid: int) -> str | None:
    """What tells a process from all others that ever get its id: boot and tick of its start; no clock matters.

    None when there is no such process, or only a dead one that its parent has not asked for yet.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _UNSEEN if exists(pid) else None
    return None if fields[_STATE] in ("Z", "X") else f"{boot}/{fields[_START]}"


def lives(pid: int, start: str) -> bool:
    """Whether the process that had this id and start (`start_of`) is still there; one that cannot be seen counts."""
    found = start_of(pid)
    return found is not None and (_UNSEEN in (found, start) or found == start)


def same_boot(start: str, other: str) -> bool:
    """Whether two processes, by their starts, are of one run of the system."""
    return start.partition("/")[0] == other.partition("/")[0]


def exists(pid: int) -> bool:
    """Whether there is a process with this id, dead ones included; with a negative id, one in that process group."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """These signals end the block by KeyboardInterrupt, also when they were ignored before (as under nohup)."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

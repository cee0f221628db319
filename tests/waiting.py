"""Waiting for what certainly comes. No test may wait in another way: how fast a machine is must not decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from evpack.processes import start_of

DEADLINE_S = 900.0
"""Longest wait for anything that takes seconds on an idle machine; only there so that a hang ends."""

T = TypeVar("T")


def until(condition: Callable[[], T], told: Callable[[], object] = lambda: "it does not come") -> T:
    """Ask until the answer is true; the answer.

    Args:
        told: what to say when it never comes.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
    return found


def until_gone(pid: int) -> None:
    """Wait for the end of a process that need not be this one's child; unburied ones count as gone."""
    until(lambda: start_of(pid) is None, lambda: f"process {pid} does not end")

"""Containers that nobody looks after any more.

A task that dies by SIGKILL leaves its container, which belongs to the engine. The next try of its step removes it; what
no try follows is removed by whoever calls here.
"""

from __future__ import annotations

from collections.abc import Callable

from evpack.errors import EvpackError
from evpack.home import Home
from evpack.runtime.choice import DOCKER, chosen_runtime


def reap_abandoned(home: Home, say: Callable[[str], None]) -> None:
    """Remove the deployment's containers whose supervisor is gone; says what it removed, or why it could not look."""
    try:
        if chosen_runtime() != DOCKER:
            return
        from evpack.runtime.docker_engine import connect, reap

        for line in reap(connect(), home):
            say(f"removed {line}: nobody looks after it")
    except EvpackError as error:
        say(f"containers were not looked after: {error}")

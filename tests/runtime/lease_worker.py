"""A process that takes and gives back devices, for test_runtime_leases."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from evpack.home import Home
from evpack.runtime.gpu import Demand
from evpack.runtime.leases import claim
from evpack.settings import Settings


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main(marks: Path, seed: int, rounds: int) -> None:
    """Take devices so many times; with 0 rounds, take one and hold it until killed."""
    dice = random.Random(seed)  # noqa: S311
    home, settings = Home.locate(), Settings(gpu_cache_ttl=5)
    done = 0
    while done < rounds or rounds == 0:
        with ExitStack() as locks:
            count = dice.randint(1, 3) if rounds else 1
            devices, _ = claim(home, settings, Demand(count, 1, idle=True), locks, str(seed))
            for device in devices:
                mark = marks / device.uuid
                if mark.exists() and alive(int(mark.read_text() or "0")):
                    sys.exit(f"{device.uuid} is held twice")
                mark.write_text(str(os.getpid()))
            if devices and rounds == 0:
                print("holding", flush=True)
                signal.pause()
            done += bool(devices)
            time.sleep(dice.random() / 500)
            for device in devices:
                (marks / device.uuid).unlink()
    print("done", done)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

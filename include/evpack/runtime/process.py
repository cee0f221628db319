"""The process runtime: `evpack step` as a child of whoever schedules it.

A step computes in a process of its own, so that its memory, its signals and its crash are its own. The child
lives in a process group of its own, which is stopped as a whole, and dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from evpack.home import ENV_NAME, Home
from evpack.processes import exists

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
"""prctl option: the signal this process gets when its parent dies (linux/prctl.h)."""

SECRET_NAMES = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""Credentials of the network; given to a step only when the campaign may use the network."""

_NOT_FOR_STEPS = ("AIRFLOW", "_AIRFLOW", "PACK_", "INVARLOCK_")
"""Prefixes of variables that end at `plan`: Airflow's own, and settings, which are frozen in the run directory."""

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_THREADS = ("OMP_NUM_THREADS", "EVPACK_THREADS")

LONGEST_LINE = 1 << 16
"""Characters of one line of a step's output; a longer one comes in pieces."""

GRACE_S = 3.0
"""Seconds a step may take to clean up after SIGTERM. Airflow kills the task itself 5 s after asking it to stop."""


def step_command(run_dir: Path, step_id: str, *, attempt: int, dag_run: str | None) -> list[str]:
    """The command that runs one step."""
    command = [sys.executable, "-m", "evpack.cli.main", "step", str(run_dir), step_id, "--try", str(attempt)]
    return command if dag_run is None else [*command, "--dag-run", dag_run]


def step_environment(environ: Mapping[str, str], *, home: Home, threads: int, network: bool) -> dict[str, str]:
    """The environment of a step: the caller's, without secrets and settings, with this deployment's places.

    Args:
        environ: environment of the caller.
        threads: threads each numeric library may use, at least 1.
        network: False also switches the Hugging Face libraries to offline.
    """
    result = {name: value for name, value in environ.items() if not name.startswith(_NOT_FOR_STEPS)}
    result[ENV_NAME] = str(home.root)
    result.setdefault("HF_HOME", str(home.hf))
    result["PYTHONUNBUFFERED"] = "1"
    result |= dict.fromkeys(_THREADS, str(threads))
    # Threads that wait must not spin: on busy cores that made a two-threaded step 2.5 times slower.
    result.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not network:
        result = {name: value for name, value in result.items() if name not in SECRET_NAMES}
        result |= dict.fromkeys(_OFFLINE, "1")
    return result


class StepProcess:
    """One child process that runs a step."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self._command = command
        self._environ = dict(environ)
        self._child: subprocess.Popen[str] | None = None

    def run(self, emit: Callable[[str], None]) -> int:
        """Start the child, hand each line of its output to `emit`, and wait.

        Returns:
            Its exit code; ``-n`` when signal n ended it.
        """
        self._child = subprocess.Popen(
            self._command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        assert self._child.stdout is not None  # noqa: S101 - stdout=PIPE above
        with self._child.stdout as output:
            while line := output.readline(LONGEST_LINE):
                emit(line.rstrip("\n"))
        return self._child.wait()

    def terminate(self, grace_s: float = GRACE_S) -> None:
        """Stop the child's whole process group: SIGTERM, then SIGKILL after `grace_s` seconds. Safe to call twice."""
        child = self._child
        if child is None:
            return
        _signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while exists(-child.pid) and time.monotonic() < deadline:
            child.poll()
            time.sleep(0.05)
        _signal_group(child.pid, signal.SIGKILL)


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A hook for `preexec_fn`: the kernel signals the child when its parent dies, even by SIGKILL. Linux only.

    One prctl call: nothing between fork and exec takes a lock.
    """
    if sys.platform != "linux":
        return None
    parent = os.getpid()

    def hook() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return hook


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return

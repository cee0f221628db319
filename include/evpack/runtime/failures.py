"""What a failed attempt of a step means: its class, and when it is tried again (scheduling spec, section 7).

The exit code decides. Only where it says nothing (a signal, a code that no step gives) are the lines looked at that
this very attempt printed; the log of earlier attempts plays no part.
"""

from __future__ import annotations

import logging
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import NEVER_VALID, NO_MEMORY, StepExit
from evpack.settings import Settings

RETRIED = NO_MEMORY | {StepExit.TRANSIENT}
"""Classes that another try may cure."""

STEP_CODES = frozenset(map(int, StepExit))

JITTER = 0.2
"""A pause is this part shorter or longer, at random, so that steps that failed together do not return together."""

_CONTAINER_SIGNAL = 128
"""A process that signal n ended shows as 128 + n where a shell or a container engine stands in between."""

_LAST_LINES = 200

_VMSTAT = Path("/proc/vmstat")

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})
"""Signals that a process gets for what it does itself; SIGKILL and SIGTERM come from people, Airflow and the kernel."""

_HUNG = re.compile(r"^Timeout \(\d+:\d\d:\d\d\)!$", re.MULTILINE)
"""The end of a step that hung beyond its time limit (`steps.runner`)."""

_LOG_CLASSES: tuple[tuple[StepExit, re.Pattern[str]], ...] = (
    (StepExit.TRANSIENT, _HUNG),
    (
        StepExit.OUT_OF_MEMORY,
        re.compile(r"\bOutOfMemoryError\b|\bCUDA (error: )?out of memory\b|\bCUBLAS_STATUS_ALLOC_FAILED\b"),
    ),
    (
        StepExit.OUT_OF_HOST_MEMORY,
        re.compile(
            r"^MemoryError\b|\bCannot allocate memory\b|\bcan't allocate memory\b|^Killed$",
            re.MULTILINE,
        ),
    ),
    (StepExit.DISK, re.compile(r"\bNo space left on device\b|\bDisk quota exceeded\b|\bRead-only file system\b")),
    (
        StepExit.PERMANENT,
        re.compile(
            r"^(FileNotFoundError|ModuleNotFoundError|ImportError|SyntaxError|TypeError|AssertionError)\b"
            rf"|^ValueError: .*({NEVER_VALID})|\bModel \S* ?not found\b",
            re.MULTILINE,
        ),
    ),
)
"""Read from the top. What no pattern knows may be cured by another try, as everything may that looks transient. So may
an assert of a device: the device is quarantined, another one gets the next try; where that ends alike, the step is the
cause (`runtime.leases`)."""


class Output:
    """What an attempt prints: handed to a log line by line, the last lines kept to tell its class."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self.last: deque[str] = deque(maxlen=_LAST_LINES)

    def __call__(self, line: str) -> None:
        """Take one line."""
        self.last.append(line)
        self._log.info("%s", line)


@dataclass(frozen=True)
class RetryLimits:
    """How often and how soon a step is tried again."""

    retries: int
    """Tries after the first."""
    base_s: float
    max_s: float

    @classmethod
    def of(cls, settings: Settings) -> RetryLimits:
        """MAX_RETRIES, RETRY_BACKOFF_BASE, RETRY_BACKOFF_MAX."""
        return cls(settings.max_retries, settings.retry_backoff_base, settings.retry_backoff_max)

    def pause_s(self, used: int, dice: Callable[[], float]) -> float:
        """Seconds before the next try: base * 2^used, up to 20 % shorter or longer, never above the cap.

        Args:
            used: retries used so far, 0 after the first failure.
            dice: a number over [0, 1).
        """
        spread = 1 - JITTER + 2 * JITTER * dice()
        return float(min(self.max_s, self.base_s * 2 ** min(used, 64) * spread))


def class_of(code: int, lines: Iterable[str] = (), *, memory_killed: bool = False) -> tuple[StepExit, str]:
    """The class of an exit code, and what the process ended by, in words.

    Args:
        code: of the step's process; ``-n`` or ``128 + n`` when signal n ended it.
        lines: the end of what this attempt printed.
        memory_killed: whether the kernel killed processes for memory meanwhile (`memory_kills`).
    """
    if code in STEP_CODES:
        return StepExit(code), f"exit {code}"
    number = _signal(code)
    name = next((known.name for known in signal.Signals if known == number), None)
    what = f"ended by {name}" if name else f"exit {code}, which no step gives"
    if number == signal.SIGKILL and memory_killed:
        return StepExit.OUT_OF_HOST_MEMORY, f"{what}, while the kernel killed for memory"
    text = "\n".join(lines)
    for class_, pattern in _LOG_CLASSES:
        if found := pattern.search(text):
            return class_, f"{what}, after printing {found.group().strip()!r}"
    return StepExit.TRANSIENT, what


def crashed(code: int, lines: Iterable[str] = ()) -> bool:
    """Whether a step's process crashed or hung, of which nobody but whoever saw its end can tell its devices' books.

    Args:
        code, lines: as for `class_of`.
    """
    return code not in STEP_CODES and (_signal(code) in _CRASHES or _HUNG.search("\n".join(lines)) is not None)


def _signal(code: int) -> int:
    return -code if code < 0 else code - _CONTAINER_SIGNAL


def memory_kills() -> int:
    """How many processes the kernel of this host has killed for lack of memory; 0 where it does not tell."""
    try:
        lines = _VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

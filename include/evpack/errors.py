"""Errors grouped by who is at fault, and the exit codes that carry them across processes.

Every error says what is wrong, with which value, and how to mend it. `diagnostics()` is what a person
sees; a traceback is shown only for a `Bug` (anything that is not an `EvpackError`).
"""

from __future__ import annotations

import errno
import re
from enum import IntEnum


class StepExit(IntEnum):
    """Exit codes of `evpack step`: the contract between a step and whatever runs it."""

    OK = 0
    BAD_INPUT = 2
    """The operator's input is wrong: never retried."""
    PERMANENT = 10
    """The step cannot succeed with these inputs (damaged shard, unknown architecture): never retried."""
    OUT_OF_MEMORY = 11
    """A device's memory, or nobody knows whose: retried with half the batch, at most twice."""
    TRANSIENT = 12
    """May succeed when tried again."""
    DISK = 13
    """No space or quota left: permanent until somebody makes room."""
    BLOCKED = 14
    """Something this step needs was not produced: a failure, never a skip."""
    NO_DEVICE = 15
    """The devices did not become free within LEASE_WAIT: tried again later, which costs no retry."""
    NO_ROOM = 16
    """The campaign's variants take all the space they may: tried again later, which costs no retry."""
    OUT_OF_HOST_MEMORY = 17
    """The host's memory, to which more devices add nothing: retried as `OUT_OF_MEMORY`."""


NO_MEMORY = frozenset({StepExit.OUT_OF_MEMORY, StepExit.OUT_OF_HOST_MEMORY})
"""What a smaller batch may cure."""

WAITING = frozenset({StepExit.NO_DEVICE, StepExit.NO_ROOM})
"""Not now: the task gives its slots back and asks again, which costs no retry."""


class CampaignExit(IntEnum):
    """Exit codes of `evpack campaign run|resume` and of every command that ends in a verdict."""

    PASS = 0
    FAIL = 1
    BAD_INPUT = 2
    INCOMPLETE = 3


def plain(text: object) -> str:
    """A text for a terminal, on one line: what does not print (line ends, escapes, lone surrogates) is spelt out.

    Texts come from packs and names that nobody trusts, which must not write lines of their own.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


class EvpackError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        what: one line naming what is wrong and with which value.
        mend: one line saying how to mend it (may be empty when nothing can be done).
    """

    exit_code: int = StepExit.PERMANENT

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend

    def diagnostics(self) -> str:
        """The text for people: what is wrong, then the mend."""
        what = "\n".join(map(plain, self.what.split("\n")))
        return f"{what}\n  mend: {self.mend}" if self.mend else what

    def __str__(self) -> str:
        return f"{self.what} ({self.mend})" if self.mend else self.what


# --- the operator's fault -------------------------------------------------------------------------
class BadInput(EvpackError):
    """A parameter, file or path given by the operator is wrong. Raised before any compute."""

    exit_code = StepExit.BAD_INPUT


class MissingFile(BadInput):
    """A file or directory that the operator named does not exist."""


# --- the checkpoint's or the text's fault ---------------------------------------------------------
class CheckpointError(EvpackError):
    """A checkpoint is damaged or of a kind that cannot be handled; names the shard or tensor."""


class DataError(EvpackError):
    """The evaluation text or its windows cannot be used."""


class EvaluationError(EvpackError):
    """A subject could not be evaluated at all (no report is possible)."""


# --- the machine's fault --------------------------------------------------------------------------
class OutOfMemory(EvpackError):
    """Memory ran out: a device's, or nobody knows whose."""

    exit_code = StepExit.OUT_OF_MEMORY


class OutOfHostMemory(OutOfMemory):
    """The host's memory ran out."""

    exit_code = StepExit.OUT_OF_HOST_MEMORY


class DiskFull(EvpackError):
    """No space or quota left on a device."""

    exit_code = StepExit.DISK


class Transient(EvpackError):
    """A failure that may go away by itself (network, a busy device)."""

    exit_code = StepExit.TRANSIENT


class DeviceFault(Transient):
    """An accelerator failed or cannot be initialised; another one may do."""


class NoDevice(EvpackError):
    """The devices that a step needs are all in use."""

    exit_code = StepExit.NO_DEVICE


class NoRoom(EvpackError):
    """A variant must wait until others were evaluated and removed."""

    exit_code = StepExit.NO_ROOM


# --- nobody's fault: a dependency is missing ------------------------------------------------------
class Blocked(EvpackError):
    """A step's needs were not met because an earlier step failed."""

    exit_code = StepExit.BLOCKED


# --- the evidence is wrong ------------------------------------------------------------------------
class EvidenceError(EvpackError):
    """Evidence is malformed, inconsistent or does not follow from its records."""


class IntegrityError(EvidenceError):
    """Bytes differ from what their digest promises."""


class BrokenContract(EvpackError):
    """A step broke the house rules (published twice, returned nothing): a defect of this package."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether what torch raised is the accelerator's or the memory's fault, and says nothing about a subject.

    After such an error the process computes nothing any more: it must reach whoever leased the devices.
    """
    if isinstance(error, DeviceFault) or is_out_of_memory(error) or type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


_NO_HOST_MEMORY = re.compile(r"(can't|cannot|unable to) allocate memory|not enough memory: you tried", re.IGNORECASE)
"""Words of torch, which has no exception of its own for the host's memory, and of what loads models with it."""
_NO_DEVICE_MEMORY = re.compile(r"CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
NEVER_VALID = r"\bis not a valid\b|\bInvalid configuration\b|\bArchitecture not supported\b"
"""Words of a ValueError that no second try cures (scheduling spec, section 7)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host's or an accelerator's memory was too small."""
    return lacks_memory(error) is not None


def lacks_memory(error: BaseException) -> StepExit | None:
    """Which memory was too small by an error of Python or torch, as the exit code that tells it; None by any other."""
    if type(error).__name__ == "OutOfMemoryError":
        return StepExit.OUT_OF_MEMORY
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return StepExit.OUT_OF_HOST_MEMORY
    if not isinstance(error, RuntimeError | ValueError):
        return None
    if _NO_DEVICE_MEMORY.search(str(error)):
        return StepExit.OUT_OF_MEMORY
    return StepExit.OUT_OF_HOST_MEMORY if _NO_HOST_MEMORY.search(str(error)) else None

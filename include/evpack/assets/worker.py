"""Conversions of checkpoints, each in a process of its own.

They want torch and the memory of a model, which whoever asks for a path need not carry, and they read files of others.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from evpack.errors import CheckpointError, DiskFull, OutOfHostMemory, Transient, lacks_memory

_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exits of a process that the kernel ended for want of memory; nobody else ends a worker this way."""
_STOPPED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
"""Exits of one that somebody stopped, most likely with everything else on this host."""


def run_worker(
    module: str,
    source: Path,
    target: Path,
    mend: str,
    *,
    extra: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> None:
    """Run ``python -m MODULE SOURCE TARGET EXTRA...`` and wait.

    Args:
        module: started by name, never imported: a library that only wants a path must not load torch.
        target: an existing directory.
        mend: what the reader of the error should do.
        extra: further arguments.
        environ: the process's environment; this one's when None.

    Raises:
        DiskFull, OutOfHostMemory, Transient: the machine's fault by its last words, or by how it ended.
        CheckpointError: it failed otherwise, with its last words.
    """
    command = [sys.executable, "-m", module, str(source), str(target), *extra]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environ and dict(environ)
    )
    if result.returncode == 0:
        return
    last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
    what = f"{source} could not be converted (exit {result.returncode}): {last}"
    if any(os.strerror(number) in last for number in (errno.ENOSPC, errno.EDQUOT)):
        raise DiskFull(f"{what} (writing {target})", "free some space on that file system and try again")
    if result.returncode in _KILLED or last.startswith("MemoryError") or lacks_memory(RuntimeError(last)):
        raise OutOfHostMemory(f"{what} (memory ran out)", "give the host more memory, or run less beside it")
    if result.returncode in _STOPPED:
        raise Transient(f"{what} (it was stopped)", "try again")
    raise CheckpointError(what, mend)

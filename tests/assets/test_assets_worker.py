"""How a conversion ended decides whose fault it was: the machine's, or the checkpoint's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evpack.assets.worker import run_worker
from evpack.errors import CheckpointError, DiskFull, EvpackError, OutOfHostMemory, Transient

ENDS: dict[str, tuple[str, type[EvpackError], str]] = {
    "killed": ("import os; os.kill(os.getpid(), 9)", OutOfHostMemory, r"exit -9\): it said nothing \(memory ran out"),
    "stopped": ("import os; os.kill(os.getpid(), 15)", Transient, r"exit -15\): it said nothing \(it was stopped"),
    "killed in a shell": ("import sys; sys.exit(137)", OutOfHostMemory, "exit 137"),
    "no memory": ("bytearray(1 << 60)", OutOfHostMemory, "MemoryError"),
    "no memory for torch": ("import torch; torch.empty(1 << 60)", OutOfHostMemory, "not enough memory|can't allocate"),
    "full for Python": ("import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')", DiskFull, "No space left"),
    "full for safetensors": (  # in its words; it would rename over the device
        "raise SystemExit('Error while serializing: I/O error: No space left on device (os error 28)')",
        DiskFull,
        "No space left",
    ),
    "quota": ("import errno, os; raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))", DiskFull, "quota"),
    "damaged": ("raise ValueError('no tensor')", CheckpointError, r"exit 1\): ValueError: no tensor"),
}


@pytest.mark.parametrize("end", ENDS)
def test_whose_fault_it_was(end: str, tmp_path: Path) -> None:
    body, kind, said = ENDS[end]
    (tmp_path / "stand_in.py").write_text(body)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with pytest.raises(kind, match=said) as caught:
        run_worker("stand_in", tmp_path / "model", tmp_path, "mend it", environ=environ)
    assert type(caught.value) is kind and caught.value.mend
    assert "\n" not in caught.value.what

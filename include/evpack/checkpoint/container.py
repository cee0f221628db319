"""The safetensors container: a length, a JSON header, the bytes of the tensors. Nothing here knows what a model is.

Own reader and writer instead of the library's, for three reasons: faults are named with shard and tensor, a tensor
is read with one copy and no mapping of the file, and a file can be written before it is known which tensors go in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from evpack.checkpoint import memory
from evpack.errors import CheckpointError, EvidenceError
from evpack.files import parse_json
from evpack.publishing import disk_errors

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
"""Limit of the format itself."""

DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Element types of the format: name in torch, bytes per element."""

_LENGTH = struct.Struct("<Q")
_LENGTH_DIGITS = 20
"""Digits of the largest 64-bit offset: what a header entry is sized for before its offsets are known."""
_LARGEST = (1 << 63) - 1
"""Largest number of a header that torch can take; of an empty tensor, nothing else bounds the other dimensions."""
_COMPARED_BYTES = 1 << 16
"""Compared at a time; tensors that differ mostly do so at once."""
_MEND = "fetch or convert the checkpoint again; this file is damaged"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    dtype: str
    """Name in the format, e.g. ``BF16``."""
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Slot:
    """Where a tensor's bytes are."""

    name: str
    path: Path
    offset: int
    """From the start of the file, bytes."""
    info: TensorInfo


def read_header(path: Path) -> dict[str, Slot]:
    """The tensors of one file, after checking that they fill it exactly, without overlap.

    Raises:
        CheckpointError: naming the file and, where there is one, the tensor.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            prefix = handle.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else MAX_HEADER_BYTES + 1
            if length > min(MAX_HEADER_BYTES, size - len(prefix)):
                raise CheckpointError(f"{path}: {size} bytes are too few for the header it announces", _MEND)
            header = parse_json(handle.read(length), f"{path} (header)", limit=MAX_HEADER_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", _MEND) from error
    except EvidenceError as error:
        raise CheckpointError(error.what, _MEND) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not an object", _MEND)
    data_start = _LENGTH.size + length
    slots = {name: _slot(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"}
    _check_layout(path, slots, data_start, size)
    return slots


def read_tensor(slot: Slot) -> torch.Tensor:
    """Read one tensor into memory of its own.

    Raises:
        CheckpointError: naming the tensor, when the file has become unreadable or shorter than its header says.
    """
    import torch

    what = f"{slot.path}: tensor {slot.name!r}"
    buffer = memory.empty(slot.info.nbytes)
    view = buffer.numpy().data
    try:
        with slot.path.open("rb", buffering=0) as handle:
            handle.seek(slot.offset)
            done = 0
            while done < len(view) and (count := handle.readinto(view[done:])):
                done += count
    except OSError as error:
        raise CheckpointError(f"{what} cannot be read ({error.strerror})", _MEND) from error
    if done < len(view):
        raise CheckpointError(f"{what}: the file ends at byte {slot.offset + done}, in the middle of it", _MEND)
    return buffer.view(getattr(torch, DTYPES[slot.info.dtype][0])).reshape(slot.info.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor as they stand in a file (row-major, little endian), without a copy where possible."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of `tensor_bytes`."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two CPU tensors are equal bit by bit: NaN equals NaN, and 0.0 differs from -0.0."""
    import numpy as np

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    a, b = (np.frombuffer(tensor_bytes(tensor), np.uint8) for tensor in (one, other))
    return all(
        np.array_equal(a[start : start + _COMPARED_BYTES], b[start : start + _COMPARED_BYTES])
        for start in range(0, len(a), _COMPARED_BYTES)
    )


def info_of(tensor: torch.Tensor) -> TensorInfo:
    """The header entry that a tensor would get.

    Raises:
        CheckpointError: for an element type the format has no name for.
    """
    torch_name = str(tensor.dtype).removeprefix("torch.")
    for name, (known, _) in DTYPES.items():
        if known == torch_name:
            return TensorInfo(name, tuple(tensor.shape), tensor.numel() * tensor.element_size())
    raise CheckpointError(f"element type {tensor.dtype} cannot be stored in safetensors")


class ContainerWriter:
    """Write a file in one pass although it is not yet known which of the candidates will go in.

    Room for the header of all candidates is left at the front; the header written at the end is padded with
    spaces, which the format allows. Used as a context manager; `close` completes the file.
    """

    def __init__(self, path: Path, candidates: Iterable[tuple[str, TensorInfo]]) -> None:
        self._entries: dict[str, Any] = {}
        self._position = 0
        full = {name: _entry(info, 10**_LENGTH_DIGITS - 1, 10**_LENGTH_DIGITS - 1) for name, info in candidates}
        self._room = -(-len(_header_bytes(full)) // 8) * 8
        self._path = path
        self._handle = path.open("xb", buffering=0)  # every fault shows at the tensor that met it
        self._handle.seek(_LENGTH.size + self._room)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one of the candidates; each at most once.

        Raises:
            DiskFull: naming the tensor.
        """
        info = info_of(tensor)
        self._write(tensor_bytes(tensor), f"tensor {name!r}")
        _start_to_store(self._handle, self._handle.tell() - info.nbytes, info.nbytes)
        self._entries[name] = _entry(info, self._position, self._position + info.nbytes)
        self._position += info.nbytes

    def close(self) -> None:
        """Write the header and close the file.

        Raises:
            DiskFull: when the device has no room.
        """
        header = _header_bytes(self._entries)
        self._handle.truncate(_LENGTH.size + self._room + self._position)
        self._handle.seek(0)
        self._write(memoryview(_LENGTH.pack(self._room) + header.ljust(self._room, b" ")), "the header")
        self._handle.close()

    def _write(self, data: memoryview, what: str) -> None:
        with disk_errors(f"{what} to {self._path}"):
            done = 0
            while done < len(data):
                done += self._handle.write(data[done:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if not self._handle.closed:
            if kind is None:
                self.close()
            self._handle.close()


def _start_to_store(handle: IO[bytes], offset: int, nbytes: int) -> None:
    """Have the kernel start to write a part of a file to the device, so that little is left for the flush at the end.

    Nothing waits; pages that are still to be written stay in memory, whatever the advice is called.
    """
    if hasattr(os, "posix_fadvise"):  # not on every system; it only saves time
        os.posix_fadvise(handle.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)


def _entry(info: TensorInfo, start: int, end: int) -> dict[str, Any]:
    return {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}


def _header_bytes(entries: dict[str, Any]) -> bytes:
    document = {"__metadata__": {"format": "pt"}, **entries}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _slot(path: Path, name: str, entry: Any, data_start: int) -> Slot:
    """Check one header entry by itself."""
    what = f"{path}: tensor {name!r}"
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{what} has no dtype, shape and pair of data_offsets", _MEND) from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{what} has element type {dtype!r}", "convert the checkpoint to one of " + ", ".join(DTYPES)
        )
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= _LARGEST for n in (*shape, start, end)):
        raise CheckpointError(f"{what} has shape {shape!r} and offsets {start!r}, {end!r}", _MEND)
    nbytes = math.prod(shape) * DTYPES[dtype][1]
    if end - start != nbytes:
        raise CheckpointError(f"{what} of shape {shape} needs {nbytes} bytes but its offsets hold {end - start}", _MEND)
    return Slot(name, path, data_start + start, TensorInfo(dtype, tuple(shape), nbytes))


def _check_layout(path: Path, slots: dict[str, Slot], data_start: int, size: int) -> None:
    """Tensors follow each other without gap or overlap up to the end of the file."""
    position = data_start
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].offset, item[1].info.nbytes)):
        if slot.offset != position:
            fault = "overlaps the one before it" if slot.offset < position else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {name!r} at byte {slot.offset} {fault}", _MEND)
        position += slot.info.nbytes
        if position > size:
            raise CheckpointError(
                f"{path}: truncated: tensor {name!r} ends at byte {position}, the file at {size}", _MEND
            )
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor", _MEND)

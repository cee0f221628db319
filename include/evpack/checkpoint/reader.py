"""A checkpoint directory, read tensor by tensor. No model is ever built from here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evpack.checkpoint.container import Slot, TensorInfo, read_header, read_tensor, tensor_sha256
from evpack.checkpoint.contents import Contents, TensorRecord
from evpack.errors import CheckpointError, EvidenceError, MissingFile
from evpack.files import Json, parse_json

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"


class CheckpointLike(Protocol):
    """What a checkpoint and a checkpoint overlaid by a delta have in common."""

    def names(self) -> list[str]:
        """Tensor names as on disk, sorted."""

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor."""

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, in memory of its own."""

    def config(self) -> dict[str, Json]:
        """The content of config.json."""

    def tensor_digest(self, name: str) -> str:
        """SHA-256 of the tensor's bytes."""

    def digest(self) -> str:
        """SHA-256 over config and all tensors: equal content gives equal digests however it is stored."""


class Checkpoint:
    """A local directory with config.json and safetensors (one file, or an index and its shards).

    Args:
        path: the directory.
        records: what `contents_of` gave for it earlier, to spare reading every byte for a digest. They must
            name exactly the tensors that are there.

    Raises:
        MissingFile: when there is no such directory.
        CheckpointError: naming the damaged or missing shard or tensor.
    """

    def __init__(self, path: Path, records: Mapping[str, TensorRecord] | None = None) -> None:
        if not path.is_dir():
            raise MissingFile(f"checkpoint directory {path} does not exist", "give a directory with config.json")
        self.path = path
        self._config = _read_object(path / CONFIG_FILE)
        self.shards = _shards(path)
        self._slots: dict[str, Slot] = {}
        for shard, expected in self.shards.items():
            self._add_shard(shard, expected)
        self._records = dict(records or {})
        if records is not None:
            self._check_records()

    def _add_shard(self, shard: Path, expected: frozenset[str] | None) -> None:
        slots = read_header(shard)
        if expected is not None and expected != slots.keys():
            name = min(expected ^ slots.keys())
            where = "named by the index is not in" if name in expected else "is not named by the index but stands in"
            raise CheckpointError(f"{shard}: tensor {name!r} {where} this shard", "fetch the checkpoint again")
        if twice := slots.keys() & self._slots.keys():
            raise CheckpointError(
                f"{shard}: tensor {min(twice)!r} stands in another shard too", "remove one of the two"
            )
        self._slots.update(slots)

    def _check_records(self) -> None:
        known = {name: (record.dtype, record.shape) for name, record in self._records.items()}
        found = {name: (slot.info.dtype, slot.info.shape) for name, slot in self._slots.items()}
        if known != found:
            name = min(n for n in known.keys() | found.keys() if known.get(n) != found.get(n))
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {found.get(name)}, recorded as {known.get(name)}",
                "the checkpoint was replaced after it was set up: start a new run directory",
            )

    def names(self) -> list[str]:
        """Tensor names as on disk, sorted."""
        return sorted(self._slots)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor.

        Raises:
            CheckpointError: when there is none of that name.
        """
        return self._slot(name).info

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, in memory of its own; checked against its recorded digest when there is one.

        Raises:
            CheckpointError: when there is none of that name, its shard has become unreadable, or its bytes changed
                since they were recorded (a linked baseline can be replaced behind a campaign's back).
        """
        slot = self._slot(name)
        tensor = read_tensor(slot)
        record = self._records.get(name)
        if record is not None and tensor_sha256(tensor) != record.sha256:
            raise CheckpointError(
                f"{slot.path}: the bytes of tensor {name!r} are not those recorded when the model was set up",
                "the checkpoint was replaced: put the old one back, or start a new run directory",
            )
        return tensor

    def config(self) -> dict[str, Json]:
        """A copy of the content of config.json."""
        return copy.deepcopy(self._config)

    def measure(self, name: str) -> torch.Tensor:
        """As `read`; its digest is known from then on. For who wants both of a checkpoint that nobody has recorded."""
        tensor = self.read(name)
        if name not in self._records:
            info = self.info(name)
            self._records[name] = TensorRecord(dtype=info.dtype, shape=info.shape, sha256=tensor_sha256(tensor))
        return tensor

    def tensor_digest(self, name: str) -> str:
        """SHA-256 of the tensor's bytes; read from disk once, unless a record is known."""
        if name not in self._records:
            self.measure(name)
        return self._records[name].sha256

    def digest(self) -> str:
        """See `CheckpointLike.digest`."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return contents_of(self).digest()

    def _slot(self, name: str) -> Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: no tensor {name!r}") from None


def contents_of(checkpoint: CheckpointLike) -> Contents:
    """A checkpoint on paper. Reads every byte whose digest is not known yet."""
    records = {}
    for name in checkpoint.names():
        info = checkpoint.info(name)
        records[name] = TensorRecord(dtype=info.dtype, shape=info.shape, sha256=checkpoint.tensor_digest(name))
    return Contents(checkpoint.config(), records)


def _shards(path: Path) -> dict[Path, frozenset[str] | None]:
    """Files with the tensors the index promises in them (None: no index).

    A single file wins over an index, as it does in transformers.
    """
    if (path / SINGLE_FILE).is_file():
        return {path / SINGLE_FILE: None}
    if not (path / INDEX_FILE).is_file():
        other = ", ".join(sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".gguf", ".pt", ".pth")))
        raise CheckpointError(
            f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE}" + (f", only {other}" if other else ""),
            "convert the checkpoint to safetensors",
        )
    weight_map = _read_object(path / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX_FILE}: no weight_map", "fetch the checkpoint again")
    tensors: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard == Path(shard).name and "\\" not in shard
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path / INDEX_FILE}: tensor {name!r} names the shard {shard!r}, which is not a plain file name "
                "ending in .safetensors",
                "do not use this checkpoint; fetch it again from a source you trust",
            )
        tensors.setdefault(shard, set()).add(name)
    here = {item.name for item in path.iterdir() if item.is_file()}  # a name too long for a file cannot be asked for
    missing = sorted(tensors.keys() - here)
    if missing:
        raise CheckpointError(
            f"{path}: shard {missing[0]}, which the index names for tensor {min(tensors[missing[0]])!r}, is missing "
            f"({len(missing)} of {len(tensors)} shards)",
            "fetch the missing shard",
        )
    return {path / shard: frozenset(names) for shard, names in sorted(tensors.items())}


def _read_object(path: Path) -> dict[str, Json]:
    """A JSON object of the checkpoint."""
    try:
        value = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", "fetch the checkpoint again") from error
    except EvidenceError as error:
        raise CheckpointError(error.what, "fetch the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", "fetch the checkpoint again")
    return value

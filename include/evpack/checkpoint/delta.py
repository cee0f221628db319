"""A variant of a checkpoint: changed tensors, removed tensors, config overrides, laid over its baseline.

Stored as a delta (only what differs) or in full (an ordinary checkpoint directory); variant.json is the same.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evpack.checkpoint.container import TensorInfo, read_header, read_tensor, tensor_sha256
from evpack.checkpoint.documents import read_as
from evpack.checkpoint.reader import CONFIG_FILE, Checkpoint, CheckpointLike, contents_of
from evpack.errors import CheckpointError
from evpack.files import Json

if TYPE_CHECKING:
    import torch

DELTA_FILE = "delta.safetensors"
VARIANT_FILE = "variant.json"
_MEND = "delete the variant and create it again"


class ChangedTensor(BaseModel):
    """One tensor of a delta."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before_sha256: str | None
    """None when the baseline has no such tensor."""
    after_sha256: str
    dtype: str
    shape: tuple[int, ...]


class VariantManifest(BaseModel):
    """variant.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["evpack_variant_v1"] = Field(default="evpack_variant_v1", alias="schema")
    scenario: str
    kind: Literal["edit", "error"]
    baseline_digest: str
    changed: dict[str, ChangedTensor]
    """Tensors whose bytes differ from the baseline's, or that it does not have."""
    removed: tuple[str, ...] = ()
    config_overrides: dict[str, Any] = {}
    """Top-level keys of config.json that replace the baseline's."""
    declaration: dict[str, Any] | None
    """What the plan's edit is meant to change; None for a fault."""
    metadata: dict[str, Any]

    def to_json(self) -> dict[str, Json]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)


def read_variant(directory: Path) -> VariantManifest:
    """Read variant.json.

    Raises:
        CheckpointError: when it is absent, malformed or of another schema.
    """
    return read_as(VariantManifest, directory / VARIANT_FILE, _MEND)


class DeltaCheckpoint:
    """The baseline with a variant laid over it; the same interface as `Checkpoint`.

    Args:
        baseline: the checkpoint that the variant was made from.
        directory: holds variant.json and either delta.safetensors or the whole checkpoint.

    Raises:
        CheckpointError: when the variant is damaged or was made from another baseline.
    """

    def __init__(self, baseline: CheckpointLike, directory: Path) -> None:
        self.baseline = baseline
        self.path = directory
        self.variant = read_variant(directory)
        if self.variant.baseline_digest != baseline.digest():
            raise CheckpointError(
                f"{directory}: made from the checkpoint {self.variant.baseline_digest[:12]}, not from this baseline "
                f"{baseline.digest()[:12]}",
                "give the checkpoint that it was made from, or create the variant again",
            )
        if strangers := set(self.variant.removed) - set(baseline.names()):
            raise CheckpointError(f"{directory}: removes {min(strangers)!r}, which the baseline does not have", _MEND)
        self._full = Checkpoint(directory) if (directory / CONFIG_FILE).is_file() else None
        self._slots = read_header(directory / DELTA_FILE) if self._full is None else {}
        self._check_agreement()

    @property
    def is_full(self) -> bool:
        """Whether the variant is stored as a whole checkpoint."""
        return self._full is not None

    def _check_agreement(self) -> None:
        promised = {name: (change.dtype, change.shape) for name, change in self.variant.changed.items()}
        if self._full is None:
            found = {name: (slot.info.dtype, slot.info.shape) for name, slot in self._slots.items()}
            where = DELTA_FILE
        else:
            infos = {name: self._full.info(name) for name in self._full.names()}
            found = {name: (info.dtype, info.shape) for name, info in infos.items()}
            kept = {name: self.baseline.info(name) for name in set(self.names()) - promised.keys()}
            promised |= {name: (info.dtype, info.shape) for name, info in kept.items()}
            where = "the weights"
            if self._full.config() != self.config():
                raise CheckpointError(f"{self.path}: {CONFIG_FILE} is not the baseline's with the overrides", _MEND)
        if promised != found:
            name = min(n for n in promised.keys() | found.keys() if promised.get(n) != found.get(n))
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {found.get(name)} in {where}, {promised.get(name)} by {VARIANT_FILE}",
                _MEND,
            )

    def names(self) -> list[str]:
        """Tensor names of the variant, sorted."""
        return sorted((set(self.baseline.names()) | self.variant.changed.keys()) - set(self.variant.removed))

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor."""
        if self._full is not None:
            return self._full.info(name)
        return self._slots[name].info if self._is_changed(name) else self.baseline.info(name)

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, checked against its digest unless the baseline holds it.

        Raises:
            CheckpointError: naming the tensor.
        """
        changed = self._is_changed(name)
        if self._full is None and not changed:
            return self.baseline.read(name)
        tensor = read_tensor(self._slots[name]) if self._full is None else self._full.read(name)
        if tensor_sha256(tensor) != self.tensor_digest(name):
            raise CheckpointError(f"{self.path}: the bytes of tensor {name!r} do not have their digest", _MEND)
        return tensor

    def config(self) -> dict[str, Json]:
        """The baseline's config with the overrides."""
        return {**self.baseline.config(), **copy.deepcopy(self.variant.config_overrides)}

    def tensor_digest(self, name: str) -> str:
        """SHA-256 of the tensor's bytes, as written or as the baseline has it."""
        return self.variant.changed[name].after_sha256 if self._is_changed(name) else self.baseline.tensor_digest(name)

    def digest(self) -> str:
        """See `CheckpointLike.digest`; the same however the variant is stored."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return contents_of(self).digest()

    def _is_changed(self, name: str) -> bool:
        if name in self.variant.removed:
            raise CheckpointError(f"{self.path}: tensor {name!r} is removed in this variant")
        return name in self.variant.changed

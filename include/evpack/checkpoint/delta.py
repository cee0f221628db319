"""A variant of a checkpoint stored as what differs: changed tensors, removed tensors, config overrides."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evpack.checkpoint.container import Slot, TensorInfo, read_header, read_tensor, tensor_sha256
from evpack.checkpoint.reader import CheckpointLike, content_digest
from evpack.errors import CheckpointError, EvidenceError
from evpack.files import Json, parse_json

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
    path = directory / VARIANT_FILE
    try:
        return VariantManifest.model_validate(parse_json(path.read_bytes(), str(path)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", _MEND) from error
    except EvidenceError as error:
        raise CheckpointError(error.what, _MEND) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", _MEND) from error


class DeltaCheckpoint:
    """The baseline with a variant laid over it; the same interface as `Checkpoint`.

    Args:
        baseline: the checkpoint that the variant was made from.
        directory: holds variant.json and delta.safetensors.

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
                _MEND,
            )
        self._slots = read_header(directory / DELTA_FILE)
        self._check_agreement()

    def _check_agreement(self) -> None:
        promised = {name: (change.dtype, change.shape) for name, change in self.variant.changed.items()}
        found = {name: (slot.info.dtype, slot.info.shape) for name, slot in self._slots.items()}
        if promised != found:
            name = min(n for n in promised.keys() | found.keys() if promised.get(n) != found.get(n))
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {found.get(name)} in {DELTA_FILE}, "
                f"{promised.get(name)} in {VARIANT_FILE}",
                _MEND,
            )
        if strangers := set(self.variant.removed) - set(self.baseline.names()):
            raise CheckpointError(f"{self.path}: removes {min(strangers)!r}, which the baseline does not have", _MEND)

    def names(self) -> list[str]:
        """Tensor names of the variant, sorted."""
        return sorted((set(self.baseline.names()) | self._slots.keys()) - set(self.variant.removed))

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor."""
        slot = self._own(name)
        return slot.info if slot else self.baseline.info(name)

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU; a changed one is checked against the digest it was written with.

        Raises:
            CheckpointError: naming the tensor.
        """
        slot = self._own(name)
        if slot is None:
            return self.baseline.read(name)
        tensor = read_tensor(slot)
        if tensor_sha256(tensor) != self.variant.changed[name].after_sha256:
            raise CheckpointError(f"{slot.path}: the bytes of tensor {name!r} do not have their digest", _MEND)
        return tensor

    def config(self) -> dict[str, Json]:
        """The baseline's config with the overrides."""
        return {**self.baseline.config(), **copy.deepcopy(self.variant.config_overrides)}

    def tensor_digest(self, name: str) -> str:
        """SHA-256 of the tensor's bytes, as written or as the baseline has it."""
        return self.variant.changed[name].after_sha256 if self._own(name) else self.baseline.tensor_digest(name)

    def digest(self) -> str:
        """See `CheckpointLike.digest`."""
        return content_digest(self)

    def _own(self, name: str) -> Slot | None:
        """The delta's slot of a tensor, None when the baseline has it."""
        if name in self.variant.removed:
            raise CheckpointError(f"{self.path}: tensor {name!r} is removed in this variant")
        return self._slots.get(name)

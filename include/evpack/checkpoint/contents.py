"""What a checkpoint holds, told without its bytes: configuration, types, shapes and digests. No torch here."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from evpack.files import Json, digest_json


class TensorRecord(BaseModel):
    """A tensor's type, shape and the SHA-256 of its bytes, as recorded in files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    """Name in the safetensors format, e.g. ``BF16``."""
    shape: tuple[int, ...]
    sha256: str


class Shaped(Protocol):
    """Type and shape of a tensor."""

    @property
    def dtype(self) -> str:
        """Name in the safetensors format."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions."""


class Described(Protocol):
    """What a checkpoint on disk and its contents on paper have in common."""

    def names(self) -> list[str]:
        """Tensor names, sorted."""

    def info(self, name: str) -> Shaped:
        """Type and shape of a tensor."""

    def config(self) -> dict[str, Json]:
        """The content of config.json."""


@dataclass(frozen=True)
class Contents:
    """A checkpoint on paper."""

    configuration: Mapping[str, Json]
    tensors: Mapping[str, TensorRecord]

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self.tensors)

    def info(self, name: str) -> TensorRecord:
        """Type, shape and digest of a tensor."""
        return self.tensors[name]

    def config(self) -> dict[str, Json]:
        """A copy of the content of config.json."""
        return copy.deepcopy(dict(self.configuration))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of config and tensor records: every byte of weights and config enters.

        How the tensors are spread over shards does not enter, so a variant has one digest whether it is stored as a
        delta or in full.
        """
        tensors = {name: record.model_dump(mode="json") for name, record in self.tensors.items()}
        return digest_json({"config": self.configuration, "tensors": tensors})

    def overlaid(
        self, changed: Mapping[str, TensorRecord], removed: Collection[str], overrides: Mapping[str, Json]
    ) -> Contents:
        """These contents with tensors changed, added or removed and top-level keys of the configuration replaced."""
        tensors = {name: record for name, record in self.tensors.items() if name not in removed} | dict(changed)
        return Contents({**self.configuration, **overrides}, tensors)

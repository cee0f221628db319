"""Raw figures of activations, from which the RMT and variance guards' findings must follow. No torch here."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evpack.guards.spectral_records import parse_records

ACTIVATION_SCHEMA: Final = "evpack_activation_records_v1"


class ModuleActivations(BaseModel):
    """One module's outputs on the sampled windows, each window a matrix of tokens x features."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["embedding", "norm", "linear", "experts"]
    target: Literal["ffn", "attn"] | None = None
    """Set where the module is the way out of a residual branch, which the variance guard may scale."""
    m: int = Field(ge=1)
    """Rows of each matrix: tokens of a window, or tokens times heads."""
    n: int = Field(ge=1)
    """Columns: features."""
    edge_risk: tuple[float | None, ...]
    """Per window the largest singular value of the standardised matrix over the edge sqrt(m) + sqrt(n) of noise;
    null where an element is not finite or all are equal. Empty where it is not kept."""
    mean_square: tuple[float | None, ...]
    """Per window the mean squared element; null where one is not finite. Empty where it is not kept."""


class ActivationRecords(BaseModel):
    """The activations of one checkpoint on the sampled windows of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["evpack_activation_records_v1"] = Field(default=ACTIVATION_SCHEMA, alias="schema")
    side: Literal["subject", "baseline"]
    run: int
    windows_digest: str
    """Of the whole run."""
    checkpoint_digest: str
    windows: tuple[int, ...]
    """Ids of the sampled windows, in schedule order."""
    contract: dict[str, Any]
    """How the figures were found."""
    modules: dict[str, ModuleActivations]

    @model_validator(mode="after")
    def _as_many(self) -> ActivationRecords:
        for name, module in self.modules.items():
            for figures in (module.edge_risk, module.mean_square):
                if len(figures) not in (0, len(self.windows)):
                    raise ValueError(f"module {name}: {len(figures)} figures for {len(self.windows)} windows")
        return self

    @property
    def whole(self) -> bool:
        """Whether every module has both figures of every window."""
        return all(len(m.edge_risk) == len(m.mean_square) == len(self.windows) for m in self.modules.values())

    @classmethod
    def parse(cls, data: bytes, name: str) -> ActivationRecords:
        """Read records from bytes.

        Raises:
            EvidenceError: naming the document, the place and the fault.
        """
        return parse_records(cls, data, name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)


def evenly_spaced(total: int, count: int) -> list[int]:
    """Positions of at most `count` windows of a run, first and last included, in order."""
    if count >= total:
        return list(range(total))
    if count <= 1:
        return [0][:count]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]

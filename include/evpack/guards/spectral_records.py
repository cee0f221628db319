"""Raw figures of weight matrices, from which the spectral guard's findings must follow. No torch here."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evpack.catalog.policy import Policy
from evpack.checkpoint.contents import Described
from evpack.checkpoint.scope import place
from evpack.errors import EvidenceError
from evpack.files import first_fault, parse_json

_Records = TypeVar("_Records", bound=BaseModel)
SPECTRAL_SCHEMA: Final = "evpack_spectral_records_v1"

_FAMILIES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("ffn", re.compile("gate_proj|gate_up_proj")),
    ("router", re.compile("router|routing|gate|gating|dispatch|switch")),
    ("expert_ffn", re.compile("experts|expert|moe|mixture_of_experts")),
    ("ffn", re.compile("mlp|ffn|feed_forward")),
    ("attn", re.compile("attn|attention|[qkvo]_proj")),
    ("embed", re.compile("embed|wte|wpe|embedding")),
)
"""First match wins. Gate projections come first: they are weights of a feed-forward block, not routers."""


@lru_cache(maxsize=1 << 14)
def family(name: str) -> str:
    """The family of a tensor or module: ffn, router, expert_ffn, attn, embed or other (lm_head, norms)."""
    lowered = name.lower()
    if ".experts" in lowered:
        return "expert_ffn"
    return next((label for label, pattern in _FAMILIES if pattern.search(lowered)), "other")


def matrix_tensors(checkpoint: Described, policy: Policy) -> list[str]:
    """Stored floating matrices, and fused expert tensors, in the policy's scope."""
    scope = policy.text("spectral.scope")
    infos = ((name, checkpoint.info(name)) for name in checkpoint.names())
    return [
        name
        for name, info in infos
        if "F" in info.dtype and len(info.shape) in (2, 3) and _in_scope(name, len(info.shape), scope)
    ]


def matrix_count(shape: tuple[int, ...]) -> int:
    """How many matrices a tensor is."""
    return 1 if len(shape) == 2 else shape[0]


def matrix_keys(name: str, shape: tuple[int, ...]) -> list[str]:
    """Names of the matrices of a tensor: its own, or those of a stack with their index behind it."""
    return [name] if len(shape) == 2 else [f"{name}[{index}]" for index in range(shape[0])]


def _in_scope(name: str, dims: int, scope: str) -> bool:
    """Whether a stored tensor belongs to the scope: ``all`` matrices, or those of ``ffn`` or ``attn``."""
    where = place(name, dims)
    if scope == "all":
        return dims == 2 or where is not None
    return where is not None and where.part == scope


class Collapse(BaseModel):
    """Rows or columns whose norm has collapsed; the norms of the baseline's matrix are the measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    eligible: int = Field(ge=0)
    """Those whose baseline norm is no outlier downwards."""
    collapsed: int = Field(ge=0)
    """Those of them whose norm has all but vanished."""

    @property
    def fraction(self) -> float:
        """Collapsed ones of the eligible, 0 where none is eligible."""
        return self.collapsed / self.eligible if self.eligible else 0.0


class MatrixRecord(BaseModel):
    """One matrix of a checkpoint; an expert's matrix of a fused tensor is one of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    dtype: str
    shape: tuple[int, int]
    tensor_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the stored tensor that the matrix is, or is part of."""
    sigma: float | None = Field(ge=0)
    """Largest singular value; null when an element is not finite."""
    frobenius: float | None = Field(ge=0)
    rows: Collapse
    columns: Collapse

    @property
    def stable_rank(self) -> float | None:
        """Squared Frobenius norm over squared sigma; None for a matrix of zeros and for one that is not finite."""
        if self.sigma is None or self.frobenius is None or self.sigma == 0.0:
            return None
        return (self.frobenius / self.sigma) ** 2


class SpectralRecords(BaseModel):
    """The matrices of one checkpoint by name. A subject's hold those that differ from its baseline's."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["evpack_spectral_records_v1"] = Field(default=SPECTRAL_SCHEMA, alias="schema")
    side: Literal["subject", "baseline"]
    checkpoint_digest: str
    contract: dict[str, Any]
    """How sigma was found."""
    matrices: dict[str, MatrixRecord]
    missing: tuple[str, ...] = ()
    """Matrices of the baseline that the subject does not have."""

    @classmethod
    def parse(cls, data: bytes, name: str) -> SpectralRecords:
        """Read records from bytes.

        Raises:
            EvidenceError: naming the document, the place and the fault.
        """
        return parse_records(cls, data, name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)


def parse_records(kind: type[_Records], data: bytes, name: str) -> _Records:
    """Strict JSON of a known shape, whose ``schema`` must stand there.

    Raises:
        EvidenceError: naming the document, the place and the fault.
    """
    value = parse_json(data, name)
    if not isinstance(value, dict) or "schema" not in value:
        raise EvidenceError(f"{name}: no object with a schema")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise EvidenceError(f"{name}: {first_fault(error)}") from error

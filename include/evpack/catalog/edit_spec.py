"""The grammar of edit specs and their resolution against tuned parameters (spec/edits.md, sections 1 and 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

EditType = Literal["quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"]


class ResolvedEdit(BaseModel):
    """An edit with nothing left open: what a kernel needs and what the declaration of a variant comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    """The spec as the manifest writes it."""
    edit_type: EditType
    scope: str
    """ffn, attn or all, with its layer modifier (``ffn@layer=15``)."""
    status: Literal["selected", "skipped"] = "selected"
    reason: str = ""
    edit_dir_name: str = ""
    bits: int | None = None
    group_size: int | None = None
    """Columns per scale; 0 or at least the row length means one scale per row."""
    format: str | None = None
    scale: Literal["none", "tensor", "channel"] = "none"
    sparsity: float | None = None
    rank: int | None = None

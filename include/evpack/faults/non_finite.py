"""Faults that put a value into a weight that is no number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evpack.checkpoint.scope import Placement
from evpack.faults.injection import Change, Injection, Victim, in_block, middle_block, projections

if TYPE_CHECKING:
    import torch

_INDEX = (0, 0)


def nan_injection(victim: Victim) -> Injection:
    """Element [0, 0] of the first block's query projection becomes NaN."""
    return _poisoned(projections(victim.checkpoint, "attn", "query")[0], math.nan)


def inf_injection(victim: Victim) -> Injection:
    """Element [0, 0] of the middle block's query projection becomes infinite: the other kind, in another block."""
    queries = projections(victim.checkpoint, "attn", "query")
    return _poisoned(in_block(queries, middle_block(queries))[0], math.inf)


def _poisoned(place: Placement, value: float) -> Injection:
    def damage(tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.clone()
        result[_INDEX] = value
        return result

    def shows(_: torch.Tensor, after: torch.Tensor) -> bool:
        found = float(after[_INDEX])
        return math.isnan(found) if math.isnan(value) else found == value

    change = Change(place.name, damage, shows, place.layer)
    return Injection((change,), parameters={"index": list(_INDEX), "value": str(value)})

"""What a fault is made of: which tensor, what becomes of it, and how to see that it happened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import Part, Placement, Role, placements
from evpack.errors import CheckpointError
from evpack.files import finite_or_none

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Injection:
    """Damage to one tensor."""

    target: Placement
    damage: Callable[[torch.Tensor], torch.Tensor]
    """Gives the damaged tensor; the argument is a copy and may be changed."""
    shows: Callable[[torch.Tensor, torch.Tensor], bool]
    """Whether the damage is there, from the tensor before and the one read back."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Recorded with the fault: index, factor."""


def first_block_target(checkpoint: CheckpointLike, part: Part, role: Role) -> Placement:
    """The canonical place of a fault: the projection with this role in the first block.

    A fixed place, not the first name met: order on disk differs from order in memory.

    Raises:
        CheckpointError: when the block has no such projection, or only routed experts: which expert the text
            reaches cannot be told from the weights, and damage in one that no token reaches shows in no metric.
    """
    places = placements(checkpoint)
    first = min((p.layer for p in places), default=None)
    found = [p for p in places if p.layer == first and p.part == part and p.role == role]
    dense = [p for p in found if not p.expert]
    if dense:
        return dense[0]
    why = "only routed experts" if found else "none"
    raise CheckpointError(
        f"the fault needs a {part} projection ({role}) in the first block; this checkpoint has {why}",
        "leave this scenario out for this model",
    )


def statistics(tensor: torch.Tensor) -> dict[str, Any]:
    """Figures of a tensor in float64, null where they are not finite."""
    values = tensor.double()
    norm = float(values.norm())
    largest = float(values.abs().max()) if values.numel() else math.nan
    return {
        "elements": values.numel(),
        "non_finite": int((~values.isfinite()).sum()),
        "mean": finite_or_none(float(values.mean())),
        "max_abs": finite_or_none(largest),
        "frobenius": finite_or_none(norm),
    }

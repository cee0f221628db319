"""Faults that multiply a weight matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evpack.checkpoint.reader import CheckpointLike
from evpack.faults.injection import Injection, first_block_target

if TYPE_CHECKING:
    import torch

EXPLOSION = 100.0
"""The reference's factor."""
_ROUNDING = 0.01
"""Relative room for the cast back when the factor is seen again in the norms (half a bf16 step is 0.4 %)."""


def scale_explosion(checkpoint: CheckpointLike) -> Injection:
    """The first block's feed-forward down-projection is multiplied by 100, in fp32 with one cast."""

    def damage(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.float() * EXPLOSION).to(tensor.dtype)

    def shows(before: torch.Tensor, after: torch.Tensor) -> bool:
        ratio = float(after.double().norm() / before.double().norm())
        return abs(ratio / EXPLOSION - 1.0) <= _ROUNDING

    return Injection(first_block_target(checkpoint, "ffn", "down"), damage, shows, {"scale_factor": EXPLOSION})

"""Faults that put a value into a weight that is no number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evpack.checkpoint.reader import CheckpointLike
from evpack.faults.injection import Injection, first_block_target

if TYPE_CHECKING:
    import torch

_INDEX = (0, 0)


def nan_injection(checkpoint: CheckpointLike) -> Injection:
    """Element [0, 0] of the first block's query projection becomes NaN."""

    def damage(tensor: torch.Tensor) -> torch.Tensor:
        tensor[_INDEX] = math.nan
        return tensor

    def shows(_: torch.Tensor, after: torch.Tensor) -> bool:
        return bool(after[_INDEX].isnan())

    return Injection(first_block_target(checkpoint, "attn", "query"), damage, shows, {"index": list(_INDEX)})

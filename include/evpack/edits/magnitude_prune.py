"""Magnitude pruning: in each matrix the k entries smallest in magnitude become zero. Exact and deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpack.checkpoint.memory import empty_like
from evpack.edits.kernel import Kernel, blocks, one_thread
from evpack.errors import BadInput

if TYPE_CHECKING:
    import torch

    from evpack.catalog.edit_spec import ResolvedEdit


class MagnitudePrune(Kernel):
    """Zero ``k = int(n * sparsity)`` of a matrix's n entries; of equal magnitudes the first in row order go first."""

    def __init__(self, edit: ResolvedEdit) -> None:
        if edit.sparsity is None:
            raise BadInput(f"edit {edit.spec!r} has no sparsity", "plan the campaign again")
        self.sparsity = edit.sparsity
        self.scope = edit.scope
        self._zeros = 0
        self._elements = 0

    @one_thread()
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """See `Kernel.apply`."""
        flat = weight.contiguous().view(-1)
        count = int(flat.numel() * self.sparsity)
        result, zeros = _without_smallest(flat, count) if count > 0 else (flat.clone(), _count(_keys(flat), 0))
        self._zeros += zeros
        self._elements += flat.numel()
        return result.view(weight.shape)

    def declaration(self) -> dict[str, Any]:
        """See `Kernel.declaration`."""
        return {"sparsity": self.sparsity}

    def metadata(self, tensors: int) -> dict[str, Any]:
        """See `Kernel.metadata`. `actual_sparsity` counts zeros that were there before, too."""
        return {
            "edit_type": "magnitude_prune",
            "target_sparsity": self.sparsity,
            "actual_sparsity": self._zeros / max(1, self._elements),
            "scope": self.scope,
            "pruned_params": tensors,
            "zeros": self._zeros,
            "edited_elements": self._elements,
        }


def _without_smallest(flat: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
    """The entries with the `count` smallest magnitudes zeroed, and how many zeros that makes, old ones included."""
    import torch

    threshold, ties = _threshold(flat, count)
    result = empty_like(flat)
    for block, out in zip(blocks(flat), blocks(result), strict=True):
        keys = _keys(block)
        tied = _count(keys, threshold) if ties > 0 else 0
        all_tied_go = 0 < tied <= ties
        keep = torch.sub(threshold + all_tied_go - 1, keys)  # negative for those that stay
        keep.bitwise_right_shift_(torch.iinfo(keep.dtype).bits - 1)  # all bits set or none
        torch.bitwise_and(_bits(block), keep, out=_bits(out))
        if tied > ties:
            out[(keys == threshold).nonzero().view(-1)[:ties]] = 0
        ties -= min(tied, ties)
    return result, count if threshold > 0 else _count(_keys(flat), 0)


def _threshold(flat: torch.Tensor, count: int) -> tuple[int, int]:
    """Pattern of the `count`-th smallest magnitude, and how many entries of that pattern are among the smallest."""
    import numpy as np

    keys = _keys(flat, out=empty_like(flat))
    if keys.device.type != "cpu":
        threshold = keys.kthvalue(count).values
        return int(threshold), count - int((keys < threshold).sum())
    ordered = keys.numpy()
    ordered.partition(count - 1)  # vectorised, in place; torch has nothing as fast on the CPU
    limit = ordered[count - 1]
    return int(limit), int(np.count_nonzero(ordered[:count] == limit))


def _count(keys: torch.Tensor, value: int) -> int:
    """How many entries are equal to the value."""
    import numpy as np

    if keys.device.type != "cpu":
        return int((keys == value).sum())
    return int(np.count_nonzero(keys.numpy() == value))  # vectorised; torch compares integers one by one


def _keys(values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Bit patterns of the magnitudes, as integers that order as they do.

    Args:
        out: of the same type and shape; its memory is used.
    """
    import torch

    bits = _bits(values)
    return torch.bitwise_and(bits, torch.iinfo(bits.dtype).max, out=None if out is None else _bits(out))


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The same memory as integers."""
    import torch

    return values.view(torch.int32 if values.element_size() == 4 else torch.int16)

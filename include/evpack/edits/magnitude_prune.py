"""Magnitude pruning: in each matrix the k entries smallest in magnitude become zero. Exact and deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpack.edits.kernel import BLOCK_ELEMENTS, Kernel, one_thread
from evpack.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        result = weight.clone().contiguous()
        flat = result.view(-1)
        count = int(flat.numel() * self.sparsity)
        if count > 0:
            _zero_smallest(flat, count)
        self._zeros += sum(int((_keys(block) == 0).sum()) for block in _blocks(flat))
        self._elements += flat.numel()
        return result

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


def _zero_smallest(flat: torch.Tensor, count: int) -> None:
    """Zero the `count` smallest magnitudes in place; non-negative floats order as their bit patterns do."""
    threshold, ties = _threshold(flat, count)
    for block in _blocks(flat):
        keys = _keys(block)
        block.view(keys.dtype).mul_(keys >= threshold)
        if ties > 0:
            first = (keys == threshold).nonzero().view(-1)[:ties]
            block[first] = 0
            ties -= first.numel()


def _threshold(flat: torch.Tensor, count: int) -> tuple[int, int]:
    """Pattern of the `count`-th smallest magnitude, and how many entries of that pattern are among the smallest."""
    import numpy as np

    keys = _keys(flat)
    if keys.device.type != "cpu":
        threshold = keys.kthvalue(count).values
        return int(threshold), count - int((keys < threshold).sum())
    ordered = keys.numpy()
    ordered.partition(count - 1)  # vectorised, in place; torch has nothing as fast on the CPU
    limit = ordered[count - 1]
    return int(limit), int(np.count_nonzero(ordered[:count] == limit))


def _keys(block: torch.Tensor) -> torch.Tensor:
    """Bit patterns of the magnitudes, as integers that order as they do."""
    import torch

    if block.element_size() == 4:
        return block.view(torch.int32) & 0x7FFF_FFFF
    return block.view(torch.int16) & 0x7FFF


def _blocks(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    for start in range(0, flat.numel(), BLOCK_ELEMENTS):
        yield flat[start : start + BLOCK_ELEMENTS]

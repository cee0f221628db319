"""Magnitude pruning: in each matrix the k entries smallest in magnitude become zero. Exact and deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpack.edits.kernel import BLOCK_ELEMENTS, Kernel
from evpack.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from evpack.catalog.edit_spec import ResolvedEdit

_HALF = 16
"""Bits per level of the histogram: one level orders 16-bit floats, two order 32-bit floats."""


class MagnitudePrune(Kernel):
    """Zero ``k = int(n * sparsity)`` of a matrix's n entries; of equal magnitudes the first in row order go first."""

    def __init__(self, edit: ResolvedEdit) -> None:
        if edit.sparsity is None:
            raise BadInput(f"edit {edit.spec!r} has no sparsity", "plan the campaign again")
        self.sparsity = edit.sparsity
        self.scope = edit.scope
        self._zeros = 0
        self._elements = 0

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """See `Kernel.apply`."""
        result = weight.clone().contiguous()
        flat = result.view(-1)
        count = int(flat.numel() * self.sparsity)
        if count > 0:
            _zero_smallest(flat, count)
        self._zeros += int((flat == 0).sum())
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
    """Zero the `count` smallest magnitudes in place.

    Non-negative floats order as their bit patterns do, so a histogram over the patterns finds the exact threshold
    in one or two passes, whatever the size.
    """
    threshold, below = _threshold(flat, count)
    ties = count - below
    for block in _blocks(flat):
        keys = _keys(block)
        block[keys < threshold] = 0
        if ties > 0:
            first = (keys == threshold).nonzero().view(-1)[:ties]
            block[first] = 0
            ties -= first.numel()


def _threshold(flat: torch.Tensor, count: int) -> tuple[int, int]:
    """Pattern of the `count`-th smallest magnitude, and how many magnitudes are smaller."""
    wide = flat.element_size() == 4
    high, below = _bin(_histogram(flat, lambda keys: keys >> _HALF if wide else keys), count)
    if not wide:
        return high, below
    low, within = _bin(_histogram(flat, lambda keys: keys[(keys >> _HALF) == high] & ((1 << _HALF) - 1)), count - below)
    return (high << _HALF) | low, below + within


def _histogram(flat: torch.Tensor, bins: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    import torch

    total = torch.zeros(1 << _HALF, dtype=torch.int64, device=flat.device)
    for block in _blocks(flat):
        total += torch.bincount(bins(_keys(block)), minlength=1 << _HALF)
    return total


def _bin(histogram: torch.Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the `count`-th entry, and how many entries lie in the bins before it."""
    import torch

    running = histogram.cumsum(0)
    index = int(torch.searchsorted(running, count))
    return index, int(running[index - 1]) if index else 0


def _keys(block: torch.Tensor) -> torch.Tensor:
    """Bit patterns of the magnitudes, as integers that order as they do."""
    import torch

    if block.element_size() == 4:
        return block.view(torch.int32) & 0x7FFF_FFFF
    return block.view(torch.int16) & 0x7FFF


def _blocks(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    for start in range(0, flat.numel(), BLOCK_ELEMENTS):
        yield flat[start : start + BLOCK_ELEMENTS]

"""Memory of the CPU for large tensors that come and go. Pages that are new to the process cost about as much as
hashing what is put in them, so memory is used again as soon as nothing refers to it any more.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SMALLEST = 1 << 20
"""Bytes from which on memory is kept; below, the allocator does that itself."""
KEPT_BYTES = 1 << 28
"""Limit of what waits to be used again; when it is passed, all of it is given back."""

_free: dict[int, list[torch.Tensor]] = {}
"""By size in bytes. Only single operations of lists and dicts touch it: a tensor may die in any thread at any time."""


def empty(nbytes: int) -> torch.Tensor:
    """A uint8 tensor of so many bytes with anything in it. It comes back with the last reference to it or a view."""
    import torch

    if nbytes < SMALLEST:
        return torch.empty(nbytes, dtype=torch.uint8)
    try:
        memory = _free[nbytes].pop()
    except (KeyError, IndexError):
        memory = torch.empty(nbytes, dtype=torch.uint8)
    lent = memory.numpy()
    weakref.finalize(lent, _take_back, memory).atexit = False
    return torch.from_numpy(lent)


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of the same shape and type, and on the same device, with anything in it."""
    import torch

    if tensor.device.type != "cpu":
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return empty(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape)


def _take_back(memory: torch.Tensor) -> None:
    if sum(size * len(tensors) for size, tensors in list(_free.items())) + len(memory) > KEPT_BYTES:
        _free.clear()
    if len(memory) <= KEPT_BYTES:
        _free.setdefault(len(memory), []).append(memory)

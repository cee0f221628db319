"""What every edit's kernel gets and gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from evpack.catalog.edit_spec import ResolvedEdit

BLOCK_ELEMENTS = 1 << 22
"""Elements that a kernel works on at a time, so that its fp32 temporaries stay small: 16 MiB each."""


class Kernel(Protocol):
    """An edit with its parameters. One instance sees all tensors of one edit and keeps the sums for its metadata."""

    def __init__(self, edit: ResolvedEdit) -> None: ...

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The edited matrix.

        Args:
            weight: rows x columns, finite, any floating type up to 32 bits; not changed.

        Returns:
            A new tensor of the same type and shape: arithmetic in fp32, cast once.
        """

    def declaration(self) -> dict[str, Any]:
        """What the edit is meant to do to each tensor, from its parameters only."""

    def metadata(self, tensors: int) -> dict[str, Any]:
        """The reference's edit metadata after all tensors have been seen.

        Args:
            tensors: how many were edited.
        """

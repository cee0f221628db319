"""What every edit's kernel gets and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from evpack.catalog.edit_spec import ResolvedEdit

BLOCK_ELEMENTS = 1 << 16
"""Elements that a kernel works on at a time, so that its fp32 temporaries stay in the processor's cache: 256 KiB each.
Four times as fast as blocks that do not fit."""

DEVICE_BLOCK_ELEMENTS = 1 << 24
"""The same on an accelerator, which has no use for small blocks: 64 MiB each."""

SMALLEST_SCALE = 1e-10
"""Floor of a quantisation scale, so that a group of zeros divides by something."""


class Kernel(ABC):
    """An edit with its parameters. One instance sees all tensors of one edit and keeps the sums for its metadata."""

    @abstractmethod
    def __init__(self, edit: ResolvedEdit) -> None: ...

    def check(self, name: str, rows: int, columns: int) -> None:  # noqa: B027  (most edits fit every matrix)
        """Refuse a matrix that the parameters do not fit, before anything is read.

        Args:
            name: of the tensor, for the message.
            rows: and columns as stored, whichever way round.

        Raises:
            BadInput: naming tensor and parameter.
        """

    @abstractmethod
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The edited matrix.

        Args:
            weight: output units x inputs, finite, fp32, fp16 or bf16, on any device; not changed.

        Returns:
            A new tensor of the same type, shape and device: arithmetic in fp32, cast once. Divisors are tensors of
            that device: torch multiplies by the reciprocal of a plain number on some, which rounds otherwise.
        """

    @abstractmethod
    def declaration(self) -> dict[str, Any]:
        """What the edit is meant to do to each tensor, from its parameters only."""

    @abstractmethod
    def metadata(self, tensors: int) -> dict[str, Any]:
        """The reference's edit metadata after all tensors have been seen.

        Args:
            tensors: how many were edited.
        """


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch from sharing out operations that take microseconds: on a busy machine every one of them would wait
    for the thread that was put aside. Reading, hashing and writing use the other processors meanwhile.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep devices from shortening the factors of fp32 products, whatever the process allows for scoring."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = (
        matmul.fp32_precision
    )  # not allow_tf32, which cannot be read once anything has set a precision by this name
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def row_blocks(weight: torch.Tensor) -> Iterator[slice]:
    """Consecutive rows of a matrix, about as many entries at a time as `blocks` gives."""
    rows = max(1, _block_elements(weight) // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        yield slice(start, start + rows)


def blocks(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    """Consecutive entries of a vector, as many at a time as are best worked on."""
    count = _block_elements(flat)
    for start in range(0, flat.numel(), count):
        yield flat[start : start + count]


def _block_elements(weight: torch.Tensor) -> int:
    return BLOCK_ELEMENTS if weight.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS


def largest_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """max|w| as an fp32 scalar tensor, without a temporary of the weight's size."""
    import torch

    lowest, highest = torch.aminmax(weight)
    return torch.maximum(-lowest, highest).float()

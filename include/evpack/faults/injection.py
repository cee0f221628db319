"""What a fault is made of: which tensors, what becomes of each, and how to see that it happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import Part, Placement, Role, placements
from evpack.errors import CheckpointError
from evpack.files import finite_or_none

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Tokens = npt.NDArray[np.int32]

_BLOCK_ELEMENTS = 1 << 22
"""Elements worked on at a time, so that temporaries in wider types stay small."""


@dataclass(frozen=True)
class Victim:
    """The baseline that a fault is made for."""

    checkpoint: CheckpointLike
    tokens: Tokens | None = None
    """Text as token ids [windows, length]; shows which routed experts it reaches."""


@dataclass(frozen=True)
class Change:
    """Damage to one stored tensor."""

    name: str
    damage: Callable[[torch.Tensor], torch.Tensor]
    """Gives the damaged tensor and leaves the argument as it is: whoever makes a new one anyway needs no third."""
    shows: Callable[[torch.Tensor, torch.Tensor], bool]
    """Whether the damage is there, from the tensor before and after."""
    layer: int | None = None
    """Block of the tensor, None outside the blocks."""
    source: str | None = None
    """For a tensor that the baseline does not have: the one it is made from."""


@dataclass(frozen=True)
class Injection:
    """A fault with everything decided."""

    changes: tuple[Change, ...] = ()
    removed: tuple[str, ...] = ()
    """Tensors that the variant does not have any more."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that change."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Recorded with the fault: index, factor, seed, rule of the place."""


def projections(checkpoint: CheckpointLike, part: Part, role: Role | None = None) -> list[Placement]:
    """All projections of a part (with a role), by block, then by name.

    Faults are placed by this order: order on disk differs from order in memory.

    Raises:
        CheckpointError: when there is none.
    """
    found = [p for p in placements(checkpoint) if p.part == part and role in (None, p.role)]
    if not found:
        raise CheckpointError(
            f"the fault needs a {part} projection ({role or 'any'}); this checkpoint has none",
            "leave this scenario out for this model",
        )
    return found


def middle_block(places: list[Placement]) -> int:
    """Of the blocks that occur, the one in the middle (the upper one of two); never the first unless it is alone."""
    layers = sorted({p.layer for p in places})
    return layers[len(layers) // 2]


def in_block(places: list[Placement], layer: int) -> list[Placement]:
    """Those of one block."""
    return [p for p in places if p.layer == layer]


def slices(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views that together are all elements in row order, each small enough for temporaries of a wider type."""
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), _BLOCK_ELEMENTS):
        yield flat[start : start + _BLOCK_ELEMENTS]


@dataclass(frozen=True)
class Figures:
    """Sums over the elements of one or several tensors, in float64."""

    elements: int = 0
    non_finite: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """Those of one tensor."""
        figures = cls()
        for piece in slices(tensor.contiguous()):
            values = piece.double()
            figures = figures.plus(
                cls(
                    elements=values.numel(),
                    non_finite=int((~values.isfinite()).sum()),
                    total=float(values.sum()),
                    squares=float(values.square().sum()),
                    largest=float(values.abs().max()),
                )
            )
        return figures

    def plus(self, other: Self) -> Self:
        """Those of both together."""
        return type(self)(
            self.elements + other.elements,
            self.non_finite + other.non_finite,
            self.total + other.total,
            self.squares + other.squares,
            max(self.largest, other.largest),
        )

    @property
    def frobenius(self) -> float:
        """Root of the sum of squares."""
        return math.sqrt(self.squares) if self.squares >= 0 else math.nan

    def to_json(self) -> dict[str, Any]:
        """As recorded: null where a figure is not finite."""
        known = self.non_finite == 0
        return {
            "elements": self.elements,
            "non_finite": self.non_finite,
            "mean": finite_or_none(self.total / self.elements) if known and self.elements else None,
            "max_abs": finite_or_none(self.largest) if known else None,
            "frobenius": finite_or_none(self.frobenius) if known else None,
        }

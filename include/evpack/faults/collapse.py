"""Faults that take most of what a matrix knows: its levels, its rank, all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import Placement, block_of
from evpack.errors import CheckpointError
from evpack.faults.injection import Change, Injection, Victim, projections, slices

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Damage = Callable[[torch.Tensor], torch.Tensor]
    Shows = Callable[[torch.Tensor, torch.Tensor], bool]

_FLOATS = ("F32", "F16", "BF16")
"""Types for which arithmetic in fp32 and one cast is exact enough."""
_LOWEST, _HIGHEST = -2, 1
"""Levels of a signed 2-bit grid."""
SMALLEST_SCALE = 1e-10
"""Floor of a scale, so that a matrix of zeros divides by something."""
_RANK_MATRICES = 8
_NORM_MATRICES = 32
"""How many attention matrices the reference collapses."""
_RESIDUE = 0.02
"""Share of the norm that may lie outside one direction after the cast (a bf16 step is 0.8 %)."""


def extreme_quant(victim: Victim) -> Injection:
    """Every matrix, embeddings and head included, on a 2-bit grid with one scale: ``s * clamp(round(w / s), -2, 1)``.

    ``s = max|w| / 2`` of the whole tensor, rounding half to even.
    """
    changes = tuple(Change(name, _two_bits, _on_two_bits, block_of(name)) for name in _matrices(victim.checkpoint))
    return Injection(changes, parameters={"quantized_params": len(changes), "bits": 2})


def rank_collapse(victim: Victim) -> Injection:
    """The first eight attention matrices become rank one: ``c * outer(first column, first row)`` of the same norm."""
    changes = _attention(victim.checkpoint, _RANK_MATRICES, _rank_one, _is_rank_one)
    return Injection(changes, parameters={"rank": 1})


def norm_collapse(victim: Victim) -> Injection:
    """The first 32 attention matrices become zero."""
    changes = _attention(victim.checkpoint, _NORM_MATRICES, _zeros, lambda _, after: not bool(after.any()))
    return Injection(changes, parameters={"norm": 0.0})


def _attention(checkpoint: CheckpointLike, count: int, damage: Damage, shows: Shows) -> tuple[Change, ...]:
    """The same damage to the first attention matrices by block, then by name."""

    def worth(place: Placement) -> bool:  # a matrix of 1 x 3 has rank one already
        return min(checkpoint.info(place.name).shape) > 1

    places = [place for place in projections(checkpoint, "attn") if worth(place)][:count]
    return tuple(Change(place.name, damage, shows, place.layer) for place in places)


def _matrices(checkpoint: CheckpointLike) -> list[str]:
    """Names of all weights with two or more dimensions.

    Raises:
        CheckpointError: for one of a type that holds no plain numbers.
    """
    found = []
    for name in checkpoint.names():
        info = checkpoint.info(name)
        if len(info.shape) < 2 or "bias" in name.rsplit(".", 1)[-1]:
            continue
        if info.dtype not in _FLOATS:
            raise CheckpointError(
                f"tensor {name!r} has element type {info.dtype}, which extreme_quant cannot handle",
                f"use a checkpoint in {', '.join(_FLOATS)}",
            )
        found.append(name)
    return found


def _scale(tensor: torch.Tensor) -> float:
    return max(max(float(piece.abs().max()) for piece in slices(tensor)) / -_LOWEST, SMALLEST_SCALE)


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_zeros(tensor.shape)


def _two_bits(tensor: torch.Tensor) -> torch.Tensor:
    scale, result = _scale(tensor), tensor.clone()
    for piece in slices(result):
        piece.copy_((piece.float() / scale).round_().clamp_(_LOWEST, _HIGHEST) * scale)
    return result


def _on_two_bits(before: torch.Tensor, after: torch.Tensor) -> bool:
    import torch

    levels = (torch.arange(_LOWEST, _HIGHEST + 1).float() * _scale(before)).to(after.dtype)
    return all(bool(torch.isin(piece, levels).all()) for piece in slices(after))


def _rank_one(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    wide = tensor.float()
    outer = torch.outer(wide[:, 0], wide[0])
    # In float64: the fp32 norm of 10^7 entries is off by half a percent.
    scale = wide.norm(dtype=torch.float64) / (outer.norm(dtype=torch.float64) + 1e-12)
    return outer.mul_(scale).to(tensor.dtype)


def _is_rank_one(_: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether nearly all of a matrix lies along its largest row."""
    wide = after.float()
    norm = float(wide.norm())
    row = wide[int(wide.norm(dim=1).argmax())]
    if not norm > 0:
        return False
    row = row / row.norm()
    return float((wide - (wide @ row)[:, None] * row).norm()) <= _RESIDUE * norm

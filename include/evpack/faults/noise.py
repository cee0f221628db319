"""Faults that move normalisation weights a little, everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evpack.checkpoint.parts import is_norm
from evpack.checkpoint.scope import block_of
from evpack.errors import CheckpointError
from evpack.faults.injection import Change, Injection, Victim
from evpack.files import sha256_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

AMPLITUDE = 0.1
"""Small enough that the metric of a shallow model accepts it (docs/faults.md); 0.3 fails it."""
SEED = 0
_SPREAD = (0.5, 2.0)
"""Where the spread of the seen noise must lie, in units of the amplitude; narrow norms have few elements."""


def rmt_norm_noise(victim: Victim, seed: int = SEED) -> Injection:
    """Every normalisation weight ``g`` becomes ``g * (1 + 0.1 eps)``, eps standard normal.

    Each tensor draws from a generator seeded by the seed and its name, so that no order matters.

    Raises:
        CheckpointError: when no normalisation layer is known by name.
    """
    names = [name for name in victim.checkpoint.names() if name.endswith(".weight") and is_norm(name)]
    if not names:
        raise CheckpointError("rmt_norm_noise finds no normalisation weights", "leave this scenario out for this model")
    changes = tuple(Change(name, _noisy(name, seed), _shows, block_of(name)) for name in names)
    return Injection(changes, parameters={"amplitude": AMPLITUDE, "seed": seed, "norm_weights": len(changes)})


def _noisy(name: str, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def damage(tensor: torch.Tensor) -> torch.Tensor:
        import torch

        drawn = int(sha256_bytes(f"{seed}:{name}".encode())[:15], 16)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(drawn))
        return (tensor.float() * (1.0 + AMPLITUDE * noise)).to(tensor.dtype)

    return damage


def _shows(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether the relative changes spread as the noise does."""
    wide = before.float()
    spread = float(((after.float() - wide).square().sum() / wide.square().sum()).sqrt())
    return _SPREAD[0] <= spread / AMPLITUDE <= _SPREAD[1]

"""Noise of half a unit in the last place of bf16 on a model's weights: a change that means nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpack.evaluation.noop import NOOP_SEED

if TYPE_CHECKING:
    import torch

_BF16_SIGNIFICAND = 8
"""Bits of a bf16 significand, the implied one included."""


def add_half_ulp(model: Any) -> None:
    """Move every weight of a model by half a unit in the last place of bf16, up or down by a seeded coin."""
    import torch

    coins = torch.Generator().manual_seed(NOOP_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(moved_half_ulp(parameter, coins))


def moved_half_ulp(tensor: torch.Tensor, coins: torch.Generator) -> torch.Tensor:
    """A floating-point tensor with each value moved by half a bf16 unit, up or down by a coin, and rounded.

    A value w in [2^(e-1), 2^e) moves by 2^(e-1-8), zero stays. In bf16 the sum is rounded to even, so about half of
    the values move by a whole unit and the others stay.
    """
    import torch

    signs = torch.randint(0, 2, tensor.shape, generator=coins, dtype=torch.int8).to(tensor.device)
    values = tensor.float()
    half = torch.ldexp((2 * signs - 1).float(), torch.frexp(values).exponent - 1 - _BF16_SIGNIFICAND)
    return torch.where(values == 0, values, values + half).to(tensor.dtype)

"""Noise of half a unit in the last place of bf16 on a model's weights: a change that means nothing."""

from __future__ import annotations

from typing import Any

from evpack.evaluation.noop import NOOP_SEED

_BF16_SIGNIFICAND = 8
"""Bits of a bf16 significand, the implied one included."""


def add_half_ulp(model: Any) -> None:
    """Move every weight of a model by half a unit in the last place of bf16, up or down by a seeded coin.

    A weight w in [2^(e-1), 2^e) moves by 2^(e-1-8). In a bf16 model the sum is rounded to even, so about half of the
    weights move by a whole unit and the others stay.
    """
    import torch

    coins = torch.Generator().manual_seed(NOOP_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            signs = torch.randint(0, 2, parameter.shape, generator=coins, dtype=torch.int8).to(parameter.device)
            values = parameter.float()
            exponent = torch.frexp(values).exponent - 1 - _BF16_SIGNIFICAND
            half = torch.ldexp((2 * signs - 1).float(), exponent)
            parameter.copy_(torch.where(values == 0, values, values + half))

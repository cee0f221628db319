"""Scales on a model's own weights, put on for a trial and taken off again to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from evpack.errors import BrokenContract


@contextmanager
def scaled(model: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """Multiply the weights of modules (never their biases) while the block runs.

    Args:
        scales: factor by module name; a module of fused experts is scaled in its way out.

    Raises:
        BrokenContract: when the model has no such module, or the module no such weight.
    """
    import torch

    modules = dict(model.named_modules())
    kept = []
    try:
        with torch.no_grad():
            for name, scale in scales.items():
                weight = getattr(modules.get(name), "weight", None)
                weight = getattr(modules.get(name), "down_proj", None) if weight is None else weight
                if not isinstance(weight, torch.Tensor):
                    raise BrokenContract(f"module {name!r} has no weight to scale")
                kept.append((weight, weight.detach().clone()))
                weight.mul_(scale)
        yield
    finally:
        with torch.no_grad():
            for weight, before in reversed(kept):
                weight.copy_(before)

"""Which part of a model goes on which of several devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evpack.errors import OutOfMemory

if TYPE_CHECKING:
    import torch


def device_map(model: Any, dtype: torch.dtype, memory: Sequence[int]) -> dict[str, int]:
    """Modules by the number of the device that holds them; a block of layers is never split.

    The weights are shared out evenly, up to a block: no device gets more than its even share and one block, and the
    last one what is left. So every device keeps room for the logits and activations of its part.

    Args:
        model: on the meta device, without weights.
        dtype: type of the weights once they are loaded.
        memory: bytes that may be used of each device, in order.

    Raises:
        OutOfMemory: when the model does not fit.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    whole = tuple(model._no_split_modules or ())
    sizes = compute_module_sizes(model, dtype=dtype)
    blocks = [sizes[name] for name, module in model.named_modules() if type(module).__name__ in whole]
    share = sizes[""] // len(memory) + max(blocks, default=0)
    limits = {number: min(share, allowed) for number, allowed in enumerate(memory)}
    limits[len(memory) - 1] = memory[-1]
    found: dict[str, Any] = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=whole, dtype=dtype)
    if outside := sorted(name for name, place in found.items() if place not in limits):
        raise OutOfMemory(
            f"the model's {sizes[''] / 1e9:.1f} GB do not fit on {len(memory)} devices with "
            f"{sum(memory) / 1e9:.1f} GB: no room for {outside[0]} ({len(outside)} modules)",
            "plan for more devices (NUM_GPUS) or raise CUDA_MEMORY_FRACTION",
        )
    return found

"""How many devices a model needs (scheduling spec, section 4).

Scoring is teacher-forced: no key-value cache is kept, so what comes on top of the weights is the logits of one batch.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass

from evpack.errors import BadInput
from evpack.plan.lanes import DEVICE_COUNTS
from evpack.settings import Settings

GB = 1e9
LOGIT_BYTES = 4
"""Logits are float32."""
LARGE_NAMES = ("70b", "72b", "65b", "mixtral", "8x7b", "moe")
"""Parts of model ids whose edits are made singly, and..."""
LARGE_GB = 170
"""... memory of a scoring step from which they are (scheduling spec, section 2)."""


@dataclass(frozen=True)
class Devices:
    """The accelerators a campaign may use."""

    count: int
    memory_gb: float = 0.0
    """Of the smallest one, GB."""


def scoring_gb(weights_gb: float, vocab: int, settings: Settings) -> float:
    """Memory of a scoring step, GB: weights + logits of one batch + overhead.

    logits = batch x seq_len x vocabulary x 4 bytes.
    """
    logits = settings.eval_batch * settings.seq_len * vocab * LOGIT_BYTES / GB
    return weights_gb + logits + max(settings.overhead_gb, settings.model_load_overhead_gb)


def devices_needed(model: str, weights_gb: float, vocab: int, devices: Devices, settings: Settings) -> int:
    """Accelerators for a model: 0 on a host without any, else 1, 2, 4 or 8.

    A step may use CUDA_MEMORY_FRACTION of each device.

    Raises:
        BadInput: when the model does not fit on all devices together.
    """
    if devices.count == 0:
        return 0
    need = scoring_gb(weights_gb, vocab, settings)
    usable = devices.memory_gb * settings.cuda_memory_fraction
    least = max(1, math.ceil(need / usable)) if usable > 0 else DEVICE_COUNTS[-1] + 1
    count = next((count for count in DEVICE_COUNTS if count >= least), least)
    if count > min(devices.count, DEVICE_COUNTS[-1]):
        raise BadInput(
            f"{model} does not fit: scoring needs {need:.1f} GB, {devices.count} devices give {usable:.1f} GB each",
            "lower INVARLOCK_EVAL_BATCH or INVARLOCK_SEQ_LEN, raise NUM_GPUS, or leave the model out",
        )
    return count


def edits_share_a_pass(model: str, weights_gb: float, vocab: int, edits: int, settings: Settings) -> bool:
    """Whether one pass makes all edits of a model: as PACK_USE_BATCH_EDITS says, else unless the model is large.

    A large model's edits are the slowest to make; made singly, they run side by side and each can be evaluated as
    soon as it is there.

    Args:
        edits: how many there are to make.
    """
    if settings.use_batch_edits is not None:
        return settings.use_batch_edits
    large = any(part in model.lower() for part in LARGE_NAMES)
    return edits > 1 and not large and scoring_gb(weights_gb, vocab, settings) < LARGE_GB


def host_devices(settings: Settings) -> Devices:
    """The accelerators of this host that the settings admit: pool, then NUM_GPUS of it; none without a driver."""
    pool = settings.cuda_visible_devices if settings.cuda_visible_devices is not None else settings.gpu_id_list
    if settings.num_gpus == 0 or pool == () or pool == ("-1",):
        return Devices(0)
    memories = detect_devices()
    if pool is not None:
        chosen = [memories[int(text)] for text in pool if text.isdecimal() and int(text) < len(memories)]
        named = [text for text in pool if not text.isdecimal()]  # UUIDs: any device may be meant
        memories = chosen + ([min(memories)] * len(named) if memories else [])
    count = len(memories) if settings.num_gpus is None else min(settings.num_gpus, len(memories))
    if count == 0:
        return Devices(0)
    return Devices(count, settings.gpu_memory_per_device or settings.gpu_memory_gb or min(memories))


def detect_devices() -> list[float]:
    """Total memory of every device of this host, GB; empty without driver or device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the pynvml package says that nvidia-ml-py is its successor
        import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetMemoryInfo(handle).total / GB for handle in handles]
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

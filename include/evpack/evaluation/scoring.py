"""Negative log-likelihoods of full windows: the only forward passes of an evaluation."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evpack.catalog.floors import Arm
from evpack.errors import DeviceFault, OutOfHostMemory, OutOfMemory, StepExit, lacks_memory
from evpack.evaluation.records import Compute, WindowLoss

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

THREADS_ENV = "EVPACK_THREADS"
"""Set by the runtime: threads of one step process, so that steps side by side do not fight for cores."""

PROCESS_SEED = 0
"""Seed of every step process: nothing of ours draws from these generators, a model's own code might."""

ALLOCATOR = "expandable_segments:True,max_split_size_mb:1024,garbage_collection_threshold:0.9"
"""PYTORCH_CUDA_ALLOC_CONF of the reference (scheduling spec, section 10)."""


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a model is scored."""

    device: str
    """torch device: ``cpu`` or ``cuda``."""
    dtype: torch.dtype
    memory: tuple[int, ...] = ()
    """Bytes that may be used of each accelerator, in order; empty on the CPU."""

    @classmethod
    def choose(cls, devices: int, checkpoint_dtype: str, memory_fraction: float = 1.0) -> Placement:
        """fp32 on the CPU (bf16 products are several times slower there); on a device the checkpoint's own half type.

        Args:
            devices: accelerators the plan gives the model; 0 is the CPU.
            checkpoint_dtype: safetensors name of the weights' type, e.g. ``BF16``.
            memory_fraction: part of each device's memory that may be used (CUDA_MEMORY_FRACTION).

        Raises:
            DeviceFault: when the plan gives more accelerators than this process sees.
        """
        import torch

        if devices == 0:
            return cls("cpu", torch.float32)
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if seen < devices:
            raise DeviceFault(
                f"the plan gives {devices} devices, this process sees {seen or 'none'}",
                "check the driver and the pool",
            )
        memory = [torch.cuda.get_device_properties(number).total_memory for number in range(devices)]
        allowed = tuple(int(memory_fraction * size) for size in memory)
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16}.get(checkpoint_dtype, torch.float32)
        return cls("cuda", dtype, allowed)

    @property
    def label(self) -> str:
        """The device as a compute contract names it: ``cpu``, or ``cuda`` with the device's name."""
        import torch

        return self.device if self.device == "cpu" else f"cuda {torch.cuda.get_device_name()}"

    @property
    def dtype_name(self) -> str:
        """The type as a compute contract names it, e.g. ``float32``."""
        return str(self.dtype).removeprefix("torch.")


def prepare_process(determinism: str, memory_fraction: float = 1.0, *, flash: bool = True) -> None:
    """Set threads, seeds, determinism and the memory limit of this process; call before the first forward pass.

    Args:
        determinism: ``strict`` (deterministic algorithms, no TF32, attention by plain products) or ``throughput``
            (TF32, tuned kernels).
        memory_fraction: part of each visible device's memory that may be used, over 0 to 1 (CUDA_MEMORY_FRACTION).
        flash: False keeps attention from flash kernels (SKIP_FLASH_ATTN).
    """
    strict = determinism == "strict"
    if strict:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the first CUDA context is made
    else:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0" if strict else "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR)  # read with the first tensor on a device
    import numpy as np
    import torch

    random.seed(PROCESS_SEED)
    np.random.seed(PROCESS_SEED)
    torch.manual_seed(PROCESS_SEED)
    torch.backends.cuda.enable_flash_sdp(flash and not strict)
    torch.backends.cuda.enable_cudnn_sdp(flash and not strict)
    torch.backends.cuda.enable_mem_efficient_sdp(not strict)
    if threads := os.environ.get(THREADS_ENV, "").strip():
        torch.set_num_threads(max(1, int(threads)))
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.deterministic = strict
    torch.backends.cudnn.benchmark = not strict
    torch.backends.cudnn.allow_tf32 = not strict
    torch.backends.cuda.matmul.allow_tf32 = not strict
    for device in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(memory_fraction, device)


def _kernels() -> str:
    """How torch's choice among its attention kernels is limited in this process, for the compute contract."""
    import torch

    kernels: Any = torch.backends.cuda
    if kernels.flash_sdp_enabled():
        return ""
    return " without flash" if kernels.mem_efficient_sdp_enabled() else " math"


def contract_of(model: Any, batch: int) -> Compute:
    """The compute contract a loaded model is scored under."""
    parameter = next(model.parameters())
    where = Placement(parameter.device.type, parameter.dtype)
    attention = str(getattr(model.config, "_attn_implementation", None) or "eager")
    if attention == "sdpa":
        attention += _kernels()
    return Compute(device=where.label, dtype=where.dtype_name, attention=attention, batch=batch)


def versions() -> dict[str, str]:
    """Versions that a window's loss may depend on."""
    import numpy
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


def score_windows(
    model: Any, tokens: npt.NDArray[np.int32], batch: int, predicted: int, correct: list[int] | None = None
) -> list[float]:
    """Sum of negative log-likelihoods of each window, nats; NaN or infinite where the model's output is.

    Every window is full, so there is no padding and each predicts its last tokens. Token losses are fp32
    (log-softmax of fp32 logits), their sum is fp64. With a vocabulary of 49,152 that is about 1e-5 nats per token less
    than in fp64, on both sides of a pair alike.

    Args:
        model: a causal language model of transformers, on its device.
        tokens: int32 [n, seq_len]; the order decides what shares a batch.
        batch: windows per forward pass.
        predicted: how many tokens of a window count, its last ones; at most seq_len - 1.
        correct: takes for each window how many of its tokens the model holds most likely.

    Raises:
        OutOfMemory: when the device or the host has no room for a batch.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    sums: list[float] = []
    with torch.inference_mode(), memory_errors(batch):
        for start in range(0, len(tokens), batch):
            ids = torch.from_numpy(tokens[start : start + batch]).to(device=device, dtype=torch.long)
            logits = model(input_ids=ids, use_cache=False).logits
            ids = ids.to(logits.device)  # of a model on several devices the head is on another than the embedding
            saying, said = logits[:, -1 - predicted : -1], ids[:, -predicted:]
            sums += [_nll_sum(logit, row) for logit, row in zip(saying, said, strict=True)]
            if correct is not None:
                correct += (saying.argmax(-1) == said).sum(-1).tolist()
            del logits, saying  # before the next batch makes its own
    return sums


def _nll_sum(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """One window: logits [predicted, vocab], ids [predicted]. One at a time keeps the softmax copy small."""
    import torch.nn.functional as functional

    losses = functional.cross_entropy(logits.float(), ids, reduction="none")
    return float(losses.double().sum())


def window_losses(
    windows: Sequence[tuple[int, Arm, str]],
    sums: Sequence[float],
    predicted: int,
    *,
    correct: Sequence[int] = (),
    failure: str | None = None,
) -> tuple[WindowLoss, ...]:
    """Losses as records carry them: null and a reason where a sum is not finite.

    Args:
        windows: (id, arm, digest of the token ids) in scoring order.
        sums: one per window, from `score_windows`.
        predicted: tokens that each window predicts.
        correct: the same of right predictions; empty where none were counted.
        failure: why there are no finite sums at all, when that is known better than from their values.
    """
    counts: Sequence[int | None] = correct or [None] * len(windows)
    return tuple(
        WindowLoss(
            id=id_,
            arm=arm,
            tokens_sha256=digest,
            predicted_tokens=predicted,
            nll_sum=total if math.isfinite(total) else None,
            reason=None
            if math.isfinite(total)
            else failure or f"non_finite_loss:{'nan' if math.isnan(total) else 'inf'}",
            correct=count if math.isfinite(total) else None,
        )
        for (id_, arm, digest), total, count in zip(windows, sums, counts, strict=True)
    )


@contextmanager
def memory_errors(batch: int) -> Iterator[None]:
    """Turn torch's and Python's out-of-memory errors into `OutOfMemory`."""
    try:
        yield
    except Exception as error:
        if (lacking := lacks_memory(error)) is None:
            raise
        first = (str(error) or "no memory left").splitlines()[0]
        kind = OutOfHostMemory if lacking is StepExit.OUT_OF_HOST_MEMORY else OutOfMemory
        raise kind(f"out of memory with {batch} windows per forward pass: {first}", "lower eval_batch") from error

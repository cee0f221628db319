"""GGUF files to ordinary Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

from evpack.assets.worker import run_worker


def convert_gguf(source: Path, target: Path) -> None:
    """Write config, tokenizer and bfloat16 safetensors of a GGUF file; equal input gives equal bytes.

    Quantised tensors are taken as the float32 values they stand for and rounded once, to bfloat16.

    Args:
        source: a GGUF file of an architecture that transformers reads from GGUF.
        target: an existing directory.

    Raises:
        DiskFull, OutOfHostMemory: no room; no memory.
        CheckpointError: the conversion failed otherwise, with its last words.
    """
    run_worker(
        "evpack.assets.gguf_worker",
        source,
        target,
        "install the pinned versions of requirements.txt; the conversion takes 4 bytes of memory per parameter",
    )

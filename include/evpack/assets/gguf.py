"""GGUF files to ordinary Hugging Face directories, converted in a process of its own.

The conversion (evpack.assets.gguf_worker) wants torch and a gigabyte of memory, which whoever asks for the demo need
not carry, and it talks on stderr.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from evpack.errors import CheckpointError

_WORKER = "evpack.assets.gguf_worker"
"""Started by name, never imported: a library that only wants a path must not load torch."""


def convert_gguf(source: Path, target: Path) -> None:
    """Write config, tokenizer and bfloat16 safetensors of a GGUF file; equal input gives equal bytes.

    Quantised tensors are taken as the float32 values they stand for and rounded once, to bfloat16.

    Args:
        source: a GGUF file of a llama-like architecture.
        target: an existing directory.

    Raises:
        CheckpointError: the conversion failed, with its last words.
    """
    command = [sys.executable, "-m", _WORKER, str(source), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(
            f"{source} could not be converted (exit {result.returncode}): {last}",
            "install the pinned versions of requirements.txt; the conversion takes 1.5 GB of memory",
        )

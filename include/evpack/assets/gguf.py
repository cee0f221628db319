"""GGUF files to ordinary Hugging Face directories: ``python -m evpack.assets.gguf SOURCE TARGET``.

The conversion runs in a process of its own: it wants torch and a gigabyte of memory, which whoever asks for the demo
need not carry, and it talks on stderr.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from evpack.errors import CheckpointError

_WORLD_READABLE = 0o644


def convert_gguf(source: Path, target: Path) -> None:
    """Write config, tokenizer and bfloat16 safetensors of a GGUF file; equal input gives equal bytes.

    Quantised tensors are taken as the float32 values they stand for and rounded once, to bfloat16.

    Args:
        source: a GGUF file of a llama-like architecture.
        target: an existing directory.

    Raises:
        CheckpointError: the conversion failed, with its last words.
    """
    command = [sys.executable, "-m", "evpack.assets.gguf", str(source), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(
            f"{source} could not be converted (exit {result.returncode}): {last}",
            "install the pinned versions of requirements.txt; the conversion takes 1.5 GB of memory",
        )


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    # Without dequantize=True the model refuses to be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(target)
    # save_pretrained writes weights with mode 0600, which a container's user could not read.
    for path in target.iterdir():
        path.chmod(_WORLD_READABLE)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))

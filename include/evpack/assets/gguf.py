"""GGUF files to ordinary Hugging Face directories."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

_WORLD_READABLE = 0o644


def convert_gguf(source: Path, target: Path) -> None:
    """Write config, tokenizer and bfloat16 safetensors of a GGUF file; equal input gives equal bytes.

    Quantised tensors are taken as the float32 values they stand for and rounded once, to bfloat16.

    Args:
        source: a GGUF file of a llama-like architecture.
        target: an existing directory.
    """
    with redirect_stderr(StringIO()):  # progress bars that no setting of the library turns off
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

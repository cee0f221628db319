"""``python -m evpack.assets.gguf_worker SOURCE TARGET``: see `evpack.assets.gguf.convert_gguf`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from evpack.files import WORLD_READABLE


def convert(source: Path, target: Path) -> None:
    """Write config, tokenizer and bfloat16 safetensors of a GGUF file into an existing directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    where |= {"trust_remote_code": False}
    # The source is a local file, and local_files_only would be written into the tokenizer's own configuration.
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    # Without dequantize=True the model refuses to be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **where, local_files_only=True, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(target)
    # save_pretrained writes weights with mode 0600, which a container's user could not read.
    for path in target.iterdir():
        path.chmod(WORLD_READABLE)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

import json

import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from evpack.checkpoint.reader import Checkpoint


@pytest.fixture
def block():
    """Two Mistral-like blocks with embeddings and norms, bf16."""
    generator = torch.Generator().manual_seed(11)
    tensors = {"model.embed_tokens.weight": torch.randn(16, 8, generator=generator).bfloat16()}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "mlp.gate_proj": (12, 8),
            "mlp.up_proj": (12, 8),
            "mlp.down_proj": (8, 12),
            "self_attn.q_proj": (8, 8),
            "self_attn.k_proj": (4, 8),
            "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8),
        }.items():
            tensors[f"{prefix}{name}.weight"] = torch.randn(shape, generator=generator).bfloat16()
        tensors[f"{prefix}input_layernorm.weight"] = torch.ones(8).bfloat16()
    return tensors


@pytest.fixture
def checkpoint_of(tmp_path):
    """A single-file checkpoint of given tensors."""

    def make(tensors, name="model"):
        root = tmp_path / name
        root.mkdir()
        (root / "config.json").write_text(json.dumps({"model_type": "mistral"}))
        save_file(tensors, root / "model.safetensors")
        return Checkpoint(root)

    return make

import json

import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

DIMS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def make_checkpoint(tmp_path):
    """Write a sharded or single-file checkpoint of given tensors."""

    def make(tensors, *, shards=1, config=None, name="model"):
        root = tmp_path / name
        root.mkdir()
        (root / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
        if shards == 1:
            save_file(tensors, root / "model.safetensors")
            return root
        weight_map = {}
        names = sorted(tensors)
        for index in range(shards):
            part = {n: tensors[n] for n in names[index::shards]}
            shard = f"model-{index}.safetensors"
            save_file(part, root / shard)
            weight_map.update(dict.fromkeys(part, shard))
        (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return root

    return make


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(7)
    return {
        "model.embed_tokens.weight": torch.randn(16, 8, generator=generator).bfloat16(),
        "model.layers.0.mlp.down_proj.weight": torch.randn(8, 12, generator=generator).bfloat16(),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(8),
    }


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A tiny saved transformers model of a family in bf16, sharded; made once per session."""
    import transformers

    made = {}

    def make(model_type, **options):
        key = (model_type, tuple(sorted(options.items())))
        if key not in made:
            dims = dict(DIMS)
            if model_type == "gpt2":
                dims = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
                dims |= {"bos_token_id": 1, "eos_token_id": 2}
            torch.manual_seed(3)
            config = transformers.AutoConfig.for_model(model_type, **(dims | options))
            model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
            root = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(root, max_shard_size="30KB")
            made[key] = root
        return made[key]

    return make

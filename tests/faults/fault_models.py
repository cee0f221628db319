"""Tiny models that the faults are tried on: model type and configuration by family."""

from __future__ import annotations

from typing import Any

DIMS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_tied": ("llama", DIMS | {"tie_word_embeddings": True}),
    "llama_untied": ("llama", DIMS | {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", DIMS | {"layer_types": ["full_attention"] * 3}),
    "mixtral": ("mixtral", DIMS | {"num_local_experts": 4}),
    "gpt_oss": ("gpt_oss", DIMS | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "gpt2": ("gpt2", GPT2 | {"vocab_size": 64}),
}

"""Embeddings, heads and normalisation layers by name."""

from __future__ import annotations

import pytest

from evpack.checkpoint.parts import head_name, is_embedding, is_head, is_norm, is_tied


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("model.layers.3.post_attention_layernorm.weight", True),
        ("model.norm.weight", True),
        ("transformer.h.0.ln_1.bias", True),
        ("model.layers.0.self_attn.q_norm.weight", True),
        ("model.layers.0.mlp.gate.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_norms_are_found_by_name(name: str, norm: bool) -> None:
    assert is_norm(name) is norm


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("model.embed_tokens.weight", "lm_head.weight"),
        ("transformer.wte.weight", "lm_head.weight"),
        ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ],
)
def test_embeddings_and_their_heads(embedding: str, head: str) -> None:
    assert is_embedding(embedding) and not is_head(embedding)
    assert head_name(embedding) == head and is_head(head) and not is_embedding(head)


def test_the_configuration_decides_over_tying_and_where_it_is_silent_a_head_on_disk() -> None:
    for names in (["lm_head.weight"], []):
        assert is_tied({"tie_word_embeddings": True}, names)
        assert not is_tied({"tie_word_embeddings": False}, names)
        assert is_tied({}, names) == (not names)

"""Which stored tensors are token embeddings, output heads or normalisation layers, by their names on disk.

The projections inside the blocks are the business of `checkpoint.scope`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")


def is_embedding(name: str) -> bool:
    """Whether a tensor has one row per token of the vocabulary on the way in."""
    return name.endswith(_EMBEDDINGS)


def is_head(name: str) -> bool:
    """Whether a tensor has one row per token of the vocabulary on the way out."""
    return name.endswith(_HEADS)


def head_name(embedding: str) -> str:
    """What a checkpoint with this embedding calls its head."""
    return "embed_out.weight" if embedding.endswith("embed_in.weight") else "lm_head.weight"


def is_norm(name: str) -> bool:
    """Whether a tensor is the weight or bias of a normalisation layer (LayerNorm and RMSNorm alike)."""
    parts = name.lower().split(".")
    owner = parts[-2] if len(parts) > 1 else ""
    return "norm" in owner or owner.startswith("ln_") or owner == "ln"


def is_tied(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether embedding and head are one matrix.

    Never judged from equal values: the configuration decides, and where it is silent a head on disk.
    """
    said = config.get("tie_word_embeddings")
    return said if isinstance(said, bool) else not any(map(is_head, names))

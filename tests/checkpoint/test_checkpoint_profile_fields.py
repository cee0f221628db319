"""The figures of a profile under the names that families use for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.checkpoint.profile import build_profile, main_dtype
from evpack.checkpoint.reader import Checkpoint

FIELDS = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "max_position_embeddings")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "max_position_embeddings": 128,
            },
            (64, 2, 8, 4, 128),
        ),
        ({"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 128}, (64, 2, 8, 8, 128)),
        ({"d_model": 64, "n_layers": 2, "n_heads": 8, "max_seq_len": 128}, (64, 2, 8, 8, 128)),
        ({"hidden_size": 64, "num_attention_heads": 8, "seq_length": 128}, (64, None, 8, 8, 128)),
        ({"hidden_size": "64", "num_hidden_layers": True, "num_attention_heads": 8.0}, (None,) * 5),
        ({}, (None,) * 5),
    ],
)
def test_every_known_name_is_read(
    config: dict[str, Any], expected: tuple[Any, ...], make_checkpoint: Callable[..., Path], tensors: dict[str, Any]
) -> None:
    profile = build_profile(Checkpoint(make_checkpoint(tensors, config=config)), model_id="m", revision=None)
    assert tuple(getattr(profile, field) for field in FIELDS) == expected


def test_sizes_are_those_on_disk_and_the_type_is_that_of_most_weights(
    make_checkpoint: Callable[..., Path], tensors: dict[str, Any]
) -> None:
    directory = make_checkpoint(tensors, shards=2)
    (directory / "pytorch_model.bin").write_bytes(b"x" * 1000)  # a second format does not count
    checkpoint = Checkpoint(directory)
    profile = build_profile(checkpoint, model_id="m", revision=None)
    assert profile.weights_bytes == sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert (profile.dtype_bytes, main_dtype(checkpoint)) == (2, "BF16")

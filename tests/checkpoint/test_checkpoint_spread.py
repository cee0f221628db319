"""Sharing a model out over devices, as computed: no device is needed for that."""

from __future__ import annotations

from typing import Any

import pytest

from evpack.checkpoint.spread import device_map
from evpack.errors import OutOfMemory


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def used(model: Any, places: dict[str, int], item_bytes: int) -> dict[int, int]:
    """Bytes on each device; fails where a parameter has no place or two."""
    found: dict[int, int] = {}
    for name, parameter in model.named_parameters():
        owners = {place for prefix, place in places.items() if name == prefix or name.startswith(f"{prefix}.")}
        assert len(owners) == 1, name
        (owner,) = owners
        found[owner] = found.get(owner, 0) + parameter.numel() * item_bytes
    return found


@pytest.mark.parametrize("devices", [2, 4])
def test_weights_are_shared_out_evenly_and_blocks_stay_whole(model: Any, devices: int) -> None:
    import torch

    places = device_map(model, torch.bfloat16, [10**9] * devices)
    found = used(model, places, 2)
    assert sorted(found) == list(range(devices))
    block = sum(p.numel() for p in model.model.layers[0].parameters()) * 2
    assert max(found.values()) <= sum(found.values()) / devices + block
    for number in range(8):
        layer = f"model.layers.{number}"
        assert len({place for name, place in places.items() if name == layer or name.startswith(f"{layer}.")}) == 1


def test_no_device_gets_more_than_it_may_use(model: Any) -> None:
    import torch

    block = sum(p.numel() for p in model.model.layers[0].parameters()) * 2
    memory = [3 * block, 20 * block]
    found = used(model, device_map(model, torch.bfloat16, memory), 2)
    assert found[0] <= memory[0] and found[1] > found[0]


def test_a_model_that_does_not_fit_is_said_so(model: Any) -> None:
    import torch

    with pytest.raises(OutOfMemory, match="do not fit on 2 devices"):
        device_map(model, torch.bfloat16, [10_000, 10_000])

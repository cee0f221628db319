import json
import math
import weakref

import pytest
import torch  # noqa: TID253

from evpack.catalog.supported import SUPPORTED_FAULTS
from evpack.checkpoint.container import ContainerWriter, same_bytes
from evpack.errors import BadInput, CheckpointError
from evpack.faults import SUPPORTED

# Query and down projection of the first block as each family writes them on disk.
FAMILIES = {
    "mistral": ("model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.down_proj.weight"),
    "gpt2": ("transformer.h.{}.attn.c_attn.weight", "transformer.h.{}.mlp.c_proj.weight"),
    "gpt_neox": ("gpt_neox.layers.{}.attention.query_key_value.weight", "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight"),
    "phi3": ("model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.down_proj.weight"),
}


@pytest.fixture(params=FAMILIES)
def family(request, checkpoint_of):
    """Checkpoint, query and down names of block 0; blocks up to 10, so that order by text would mislead."""
    query, down = FAMILIES[request.param]
    generator = torch.Generator().manual_seed(1)
    tensors = {"a.first.weight": torch.ones(4, 4)}
    for layer in range(11):
        for name in (query, down):
            tensors[name.format(layer)] = torch.randn(6, 4, generator=generator).bfloat16()
    return checkpoint_of(tensors), query.format(0), down.format(0)


def test_nan_injection_touches_one_element_of_the_first_query(family, inject):
    checkpoint, query, _ = family
    variant = inject(checkpoint, "nan_injection")
    assert list(variant.variant.changed) == [query]
    before, after = checkpoint.read(query), variant.read(query)
    assert math.isnan(after[0, 0])
    after[0, 0] = before[0, 0]
    assert same_bytes(before, after)
    metadata = variant.variant.metadata
    assert metadata["error_type"] == "nan_injection"
    assert metadata["injected"] is True
    assert metadata["target_param"] == query
    assert metadata["target_block"] == 0
    assert metadata["index"] == [0, 0]
    assert metadata["before"]["non_finite"] == 0
    assert metadata["after"]["non_finite"] == 1
    assert metadata["after"]["mean"] is None


def test_scale_explosion_multiplies_the_first_down_projection(family, inject):
    checkpoint, _, down = family
    variant = inject(checkpoint, "scale_explosion")
    assert list(variant.variant.changed) == [down]
    assert same_bytes(variant.read(down), (checkpoint.read(down).float() * 100).bfloat16())
    metadata = variant.variant.metadata
    assert metadata["scale_factor"] == 100.0
    assert metadata["after"]["frobenius"] == pytest.approx(100 * metadata["before"]["frobenius"], rel=0.01)


@pytest.mark.parametrize("error_type", ["nan_injection", "inf_injection", "scale_explosion", "spectral_moderate_scale"])
def test_a_fault_declares_nothing_and_costs_one_tensor(family, inject, error_type):
    checkpoint, *_ = family
    variant = inject(checkpoint, error_type)
    content = json.loads((variant.path / "variant.json").read_text())
    assert content["declaration"] is None
    assert content["kind"] == "error"
    assert content["metadata"]["artifact_class"] == "fault_injection_fixture"
    size = sum(file.stat().st_size for file in variant.path.iterdir())
    assert size <= checkpoint.info(content["metadata"]["target_param"]).nbytes + 64_000


def test_inf_injection_and_the_moderate_scale_are_in_the_middle(family, inject):
    checkpoint, query, down = family
    infinite = inject(checkpoint, "inf_injection")
    [name] = infinite.variant.changed
    assert name == query.replace(".0.", ".5.") and infinite.variant.metadata["target_block"] == 5
    assert infinite.read(name)[0, 0] == math.inf and int(infinite.read(name).isinf().sum()) == 1
    doubled = inject(checkpoint, "spectral_moderate_scale")
    [name] = doubled.variant.changed
    assert name == down.replace(".0.", ".5.")
    assert same_bytes(doubled.read(name), checkpoint.read(name) * 2)


def test_the_skew_alternates_over_the_blocks(family, inject):
    checkpoint, _, down = family
    variant = inject(checkpoint, "ve_mlp_scale_skew")
    for layer in range(11):
        name = down.replace(".0.", f".{layer}.")
        factor = 1 / 1.2 if layer % 2 else 1.2
        assert variant.variant.metadata["scale_factors"][str(layer)] == factor
        assert same_bytes(variant.read(name), (checkpoint.read(name).float() * factor).bfloat16())
    assert variant.variant.metadata["target_count"] == len(variant.variant.changed) == 11


def test_what_the_planner_lets_through_can_be_injected():
    assert set(SUPPORTED) == SUPPORTED_FAULTS


def test_an_unknown_error_type_is_bad_input(checkpoint_of, inject):
    with pytest.raises(BadInput, match="'meteor'") as caught:
        inject(checkpoint_of({"x": torch.ones(1)}), "meteor")
    assert "nan_injection" in caught.value.mend


def test_damage_that_does_not_show_is_an_error(checkpoint_of, inject):
    name = FAMILIES["mistral"][1].format(0)
    with pytest.raises(CheckpointError, match="does not show"):
        inject(checkpoint_of({name: torch.zeros(4, 4)}), "scale_explosion")


def test_damage_too_large_for_the_type_is_not_taken_for_scaling(checkpoint_of, inject):
    name = FAMILIES["mistral"][1].format(0)
    with pytest.raises(CheckpointError, match="does not show"):
        inject(checkpoint_of({name: torch.full((4, 4), 1000.0).half()}), "scale_explosion")


def test_a_model_without_the_place_is_an_error(checkpoint_of, inject):
    with pytest.raises(CheckpointError, match="has none"):
        inject(checkpoint_of({"model.embed_tokens.weight": torch.ones(2, 2)}), "nan_injection")


def test_routed_experts_without_a_text_are_no_place(checkpoint_of, inject):
    name = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    with pytest.raises(CheckpointError, match="only routed experts"):
        inject(checkpoint_of({name: torch.ones(2, 2)}), "scale_explosion")


def test_what_is_written_is_what_was_seen(checkpoint_of, inject, monkeypatch):
    """A variant whose bytes went wrong on the way to the disk is refused."""
    add = ContainerWriter.add
    monkeypatch.setattr(ContainerWriter, "add", lambda self, name, tensor: add(self, name, torch.zeros_like(tensor)))
    name = FAMILIES["mistral"][1].format(0)
    with pytest.raises(CheckpointError, match="digest"):
        inject(checkpoint_of({name: torch.ones(4, 4)}), "scale_explosion")


@pytest.mark.parametrize("error_type", SUPPORTED)
def test_no_damage_is_done_to_what_was_read(tiny, inject, text, monkeypatch, error_type):
    checkpoint = tiny("llama_tied")
    read, seen = checkpoint.read, []

    def kept(name):
        tensor = read(name)
        seen.append((name, tensor))
        return tensor

    monkeypatch.setattr(checkpoint, "read", kept)
    inject(checkpoint, error_type, tokens=text)
    assert all(same_bytes(tensor, read(name)) for name, tensor in seen)


def test_a_fault_of_all_tensors_holds_few_at_a_time(checkpoint_of, inject, monkeypatch):
    checkpoint = checkpoint_of({FAMILIES["mistral"][0].format(layer): torch.randn(4, 4) for layer in range(30)})
    alive, most = 0, 0
    read = checkpoint.read

    def gone():
        nonlocal alive
        alive -= 1

    def counted(name):
        nonlocal alive, most
        tensor = read(name)
        weakref.finalize(tensor, gone)
        alive += 1
        most = max(most, alive)
        return tensor

    monkeypatch.setattr(checkpoint, "read", counted)
    assert inject(checkpoint, "extreme_quant").variant.metadata["target_count"] == 30
    assert 1 <= most <= 3

import pytest
import torch  # noqa: TID253

from evpack.catalog.edit_spec import EDIT_TYPES, parse_edit_spec, resolve_edit
from evpack.catalog.supported import SUPPORTED_EDITS
from evpack.edits import SUPPORTED, apply_edit, kernel_for
from evpack.errors import BadInput, CheckpointError

FFN = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
ATTN = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]


def names(modules, layers=(0, 1)):
    return {f"model.layers.{layer}.{module}.weight" for layer in layers for module in modules}


@pytest.fixture
def edit(tmp_path):
    def edit(checkpoint, text, name="variant"):
        (tmp_path / name).mkdir()
        return apply_edit(checkpoint, resolve_edit(parse_edit_spec(text)), tmp_path / name, scenario="scenario")

    return edit


@pytest.mark.parametrize("spec", ["quant_rtn:4:{}", "fp8_quant:e5m2:{}", "magnitude_prune:0.5:{}", "lowrank_svd:3:{}"])
@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("ffn", names(FFN)),
        ("attn", names(ATTN)),
        ("all", names(FFN + ATTN)),
        ("ffn@layer=1", names(FFN, [1])),
    ],
)
def test_an_edit_changes_its_scope_and_leaves_every_other_byte(edit, checkpoint_of, block, spec, scope, expected):
    checkpoint = checkpoint_of(block)
    variant = edit(checkpoint, spec.format(scope))
    assert set(variant.variant.changed) == expected
    assert set(variant.variant.declaration["tensors"]) == expected
    kernel = kernel_for(spec.split(":")[0])(resolve_edit(parse_edit_spec(spec.format(scope))))
    for name, tensor in block.items():
        assert torch.equal(variant.read(name), kernel.apply(tensor) if name in expected else tensor)


def test_what_is_recorded(edit, checkpoint_of, block):
    variant = edit(checkpoint_of(block), "quant_rtn:4:8:attn").variant
    assert (variant.scenario, variant.kind) == ("scenario", "edit")
    assert variant.metadata["artifact_class"] == "validation_subject_checkpoint"
    assert variant.metadata["spec"] == "quant_rtn:4:8:attn"
    assert variant.metadata["quantized_params"] == len(names(ATTN))
    assert variant.declaration["edit_type"] == "quant_rtn"
    assert variant.declaration["grid"] == {"bits": 4, "group_size": 8}


def test_a_tensor_that_the_edit_leaves_as_it_was_is_declared_but_not_stored(edit, checkpoint_of, block):
    name = "model.layers.0.mlp.up_proj.weight"
    variant = edit(checkpoint_of(block | {name: torch.zeros(12, 8).bfloat16()}), "quant_rtn:4:ffn").variant
    assert name not in variant.changed
    assert name in variant.declaration["tensors"]


def test_fused_experts_are_edited_one_by_one(edit, checkpoint_of):
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(3, 6, 10, generator=generator) * torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    name = "model.layers.0.mlp.experts.down_proj"
    router = "model.layers.0.mlp.router.weight"
    variant = edit(checkpoint_of({name: fused, router: torch.ones(3, 6)}), "magnitude_prune:0.5:ffn")
    assert set(variant.variant.changed) == {name}
    assert [(expert == 0).sum().item() for expert in variant.read(name)] == [30, 30, 30]


def test_the_same_edit_twice_gives_the_same_bytes(edit, checkpoint_of, block):
    checkpoint = checkpoint_of(block)
    one, two = (edit(checkpoint, "magnitude_prune:0.3:all", name) for name in ("one", "two"))
    for file in ("delta.safetensors", "variant.json"):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_baseline_is_named(edit, checkpoint_of, block, value):
    name = "model.layers.1.mlp.down_proj.weight"
    block[name][0, 3] = value
    with pytest.raises(CheckpointError, match=f"'{name}' holds 1 non-finite"):
        edit(checkpoint_of(block), "quant_rtn:8:ffn")


def test_damage_outside_the_scope_does_not_stop_an_edit(edit, checkpoint_of, block):
    block["model.layers.1.mlp.down_proj.weight"][0, 3] = float("nan")
    assert edit(checkpoint_of(block), "quant_rtn:8:attn").variant.changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.int8])
def test_a_type_that_cannot_be_edited_is_named(edit, checkpoint_of, block, dtype):
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=f"'{name}' has element type"):
        edit(checkpoint_of(block | {name: block[name].to(dtype)}), "quant_rtn:8:ffn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_edit_that_creates_non_finite_values_is_an_error_with_their_count(edit, checkpoint_of, block, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    block = {known: tensor.to(dtype) for known, tensor in block.items()}
    block[name][0, :3] = torch.tensor([57344.0, 61440.0, -65504.0])
    with pytest.raises(CheckpointError, match=rf"2 entries of tensor '{name}' non-finite"):
        edit(checkpoint_of(block), "fp8_quant:e5m2:ffn")
    assert edit(checkpoint_of(block, "again"), "fp8_quant:e4m3:ffn", "saturated").read(name)[0, 1] == 448


def test_an_edit_without_effect_is_an_error(edit, checkpoint_of, block):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in block.items()}
    with pytest.raises(CheckpointError, match="changed no byte"):
        edit(checkpoint_of(zeros), "quant_rtn:8:all")


def test_a_scope_without_tensors_is_an_error(edit, checkpoint_of, block):
    with pytest.raises(CheckpointError, match="matches no tensor"):
        edit(checkpoint_of({"model.embed_tokens.weight": block["model.embed_tokens.weight"]}), "quant_rtn:8:all")


def test_a_layer_beyond_the_model_is_bad_input(edit, checkpoint_of, block):
    with pytest.raises(BadInput, match="layer 2"):
        edit(checkpoint_of(block), "quant_rtn:8:all@layer=2")


def test_an_edit_type_without_a_kernel_is_bad_input_naming_the_others():
    assert set(SUPPORTED) == SUPPORTED_EDITS, "what the planner lets through can be made"
    for edit_type in {*EDIT_TYPES, "unheard_of"} - SUPPORTED_EDITS:
        with pytest.raises(BadInput, match=edit_type) as caught:
            kernel_for(edit_type)
        assert all(known in caught.value.mend for known in SUPPORTED)


def test_a_skipped_edit_is_not_made(checkpoint_of, block, tmp_path):
    skipped = resolve_edit(parse_edit_spec("quant_rtn:clean:ffn"), {"status": "skipped", "reason": "why"})
    with pytest.raises(BadInput, match="skipped"):
        apply_edit(checkpoint_of(block), skipped, tmp_path, scenario="s")

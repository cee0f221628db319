"""The selector and all edits on small models of every supported family, as transformers writes and reads them."""

import pytest
import torch  # noqa: TID253
import transformers  # noqa: TID253

from evpack.catalog.edit_spec import parse_edit_spec, parse_scope, resolve_edit
from evpack.checkpoint.container import same_bytes
from evpack.checkpoint.full import to_full
from evpack.checkpoint.loading import load_model
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.scope import select
from evpack.edits import apply_edit, kernel_for
from evpack.errors import BadInput, CheckpointError

HIDDEN = 32
DIMS = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_DIMS = {"vocab_size": 64, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK_MOE = {
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
LOCAL_MOE = {"num_local_experts": 3, "num_experts_per_tok": 2}

DENSE = [f"mlp.{w}_proj.weight" for w in ("gate", "up", "down")]
EXPERTS = [f"mlp.experts.{e}.{w}_proj.weight" for e in range(3) for w in ("gate", "up", "down")]
QKVO = [f"self_attn.{w}_proj.weight" for w in "qkvo"]
C_MLP, C_ATTN = ["mlp.c_fc.weight", "mlp.c_proj.weight"], ["attn.c_attn.weight", "attn.c_proj.weight"]
NEOX_MLP = ["mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"]

# model type: (configuration, prefix of a block, ffn, attn, which of them are stored inputs x outputs)
FAMILIES = {
    "llama": (DIMS, "model.layers.{}.", DENSE, QKVO, []),
    "mistral": (DIMS, "model.layers.{}.", DENSE, QKVO, []),
    "qwen2": (DIMS | {"tie_word_embeddings": True}, "model.layers.{}.", DENSE, QKVO, []),
    "phi3": (
        DIMS,
        "model.layers.{}.",
        ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
        ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"],
        [],
    ),
    "gpt2": (GPT_DIMS, "transformer.h.{}.", C_MLP, C_ATTN, C_MLP + C_ATTN),
    "gpt_bigcode": (GPT_DIMS, "transformer.h.{}.", C_MLP, C_ATTN, []),
    "gpt_neox": (
        DIMS,
        "gpt_neox.layers.{}.",
        NEOX_MLP,
        ["attention.query_key_value.weight", "attention.dense.weight"],
        [],
    ),
    "mixtral": (
        DIMS | LOCAL_MOE,
        "model.layers.{}.",
        [f"block_sparse_moe.experts.{e}.w{w}.weight" for e in range(3) for w in (1, 2, 3)],
        QKVO,
        [],
    ),
    "qwen2_moe": (
        DIMS | MOE | {"shared_expert_intermediate_size": 40},
        "model.layers.{}.",
        EXPERTS + [f"mlp.shared_expert.{w}_proj.weight" for w in ("gate", "up", "down")],
        QKVO,
        [],
    ),
    "qwen3_moe": (DIMS | MOE | {"head_dim": 8}, "model.layers.{}.", EXPERTS, QKVO, []),
    "olmoe": (DIMS | MOE, "model.layers.{}.", EXPERTS, QKVO, []),
    "deepseek_v3": (
        DIMS | LATENT | DEEPSEEK_MOE,
        "model.layers.{}.",
        EXPERTS + [f"mlp.shared_experts.{w}_proj.weight" for w in ("gate", "up", "down")],
        [f"self_attn.{w}.weight" for w in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")],
        [],
    ),
    "granitemoeshared": (
        DIMS | LOCAL_MOE | {"shared_intermediate_size": 40},
        "model.layers.{}.",
        [f"{part}.{way}_linear.weight" for part in ("block_sparse_moe", "shared_mlp") for way in ("input", "output")],
        QKVO,
        [],
    ),
    "gpt_oss": (
        DIMS | LOCAL_MOE | {"head_dim": 8},
        "model.layers.{}.",
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        QKVO,
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
}
SPECS = ["quant_rtn:4:16:all", "fp8_quant:e4m3:all", "magnitude_prune:0.5:all", "lowrank_svd:4:all"]
IDS = torch.arange(48).reshape(3, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model of a family in bf16, as `save_pretrained` writes it; made once."""
    import transformers

    made = {}

    def save(model_type):
        if model_type not in made:
            torch.manual_seed(3)
            config = transformers.AutoConfig.for_model(model_type, **FAMILIES[model_type][0])
            model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
            made[model_type] = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(made[model_type], max_shard_size="30KB")
        return made[model_type]

    return save


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, saved):
    return request.param, Checkpoint(saved(request.param))


def full(model_type, suffixes):
    prefix = FAMILIES[model_type][1]
    return {prefix.format(layer) + suffix for layer in range(2) for suffix in suffixes}


def edited(checkpoint, text, directory, tuned=None):
    directory.mkdir()
    return apply_edit(checkpoint, resolve_edit(parse_edit_spec(text), tuned), directory, scenario="s")


def logits(checkpoint):
    model, report = load_model(checkpoint, torch.float32)
    assert not report.unexplained
    with torch.no_grad():
        return model(IDS).logits


def test_selected_names(family):
    model_type, checkpoint = family
    _, _, ffn, attn, inputs_first = FAMILIES[model_type]
    for scope, suffixes in {"ffn": ffn, "attn": attn, "all": ffn + attn}.items():
        places = select(checkpoint, parse_scope(scope))
        assert {place.name for place in places} == full(model_type, suffixes)
        assert {place.name for place in places if place.inputs_first} == full(model_type, inputs_first) & full(
            model_type, suffixes
        )


def test_the_way_round_is_that_of_the_modules(family):
    """A square weight hides a wrong answer, so modules are asked: Conv1D and GPT-OSS experts multiply from the left."""
    from transformers.pytorch_utils import Conv1D

    _, checkpoint = family
    modules = dict(load_model(checkpoint, torch.float32)[0].named_modules())
    for place in select(checkpoint, parse_scope("all")):
        shape = checkpoint.info(place.name).shape
        if len(shape) == 3:
            assert place.inputs_first == (shape[-2:] in [(HIDDEN, 96), (48, HIDDEN)])
        elif (module := modules.get(place.name.removesuffix(".weight"))) is not None:
            assert place.inputs_first == isinstance(module, Conv1D)
        else:
            assert place.expert, "separate on disk, fused in memory"


def test_an_edit_of_a_family_known_in_part_says_what_it_left_out(family, checkpoint_of, tmp_path):
    _, whole = family
    assert "unknown_matrices" not in edited(whole, "magnitude_prune:0.5:all", tmp_path / "whole").variant.metadata
    strangers = [f"model.layers.{layer}.mixer.stranger_{n}" for layer in range(2) for n in range(5)]
    tensors = {name: whole.read(name) for name in whole.names()} | {name: torch.ones(3, 3) for name in strangers}
    made = edited(checkpoint_of(tensors), "magnitude_prune:0.5:all", tmp_path / "part")
    assert made.variant.metadata["unknown_matrices"] == {"count": 10, "first": strangers[:8]}
    assert not set(strangers) & made.variant.changed.keys()


@pytest.mark.parametrize("spec", SPECS)
def test_a_variant_loads_with_finite_logits_and_untouched_tensors_keep_their_bytes(family, spec, tmp_path):
    model_type, checkpoint = family
    _, _, ffn, attn, _ = FAMILIES[model_type]
    variant = edited(checkpoint, spec, tmp_path / "v")
    assert set(variant.variant.changed) == full(model_type, ffn + attn)
    result = logits(variant)
    stored = Checkpoint(to_full(variant, checkpoint).path)  # a delta would give the baseline's own bytes
    assert {name for name in checkpoint.names() if not same_bytes(stored.read(name), checkpoint.read(name))} == full(
        model_type, ffn + attn
    )
    assert bool(result.isfinite().all())
    assert not torch.equal(result, logits(checkpoint))


def test_transformers_loads_the_full_form_of_every_family(family, tmp_path):
    _, checkpoint = family
    variant = edited(checkpoint, "magnitude_prune:0.5:all", tmp_path / "v")
    mine = logits(variant)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        to_full(variant, checkpoint).path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    with torch.no_grad():
        result = model.eval()(IDS).logits
    assert bool(result.isfinite().all())
    assert torch.equal(result, mine)


ROWWISE = [
    ("quant_rtn:4:0:ffn", None),
    ("quant_rtn:4:16:ffn", None),
    ("fp8_quant:clean:ffn", {"status": "selected", "format": "e4m3", "scale": "channel"}),
]


@pytest.mark.parametrize(("text", "tuned"), ROWWISE, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(
    ("model_type", "name"),
    [("gpt2", "transformer.h.0.mlp.c_fc.weight"), ("gpt_oss", "model.layers.1.mlp.experts.gate_up_proj")],
)
def test_scales_belong_to_output_units_also_where_inputs_come_first(saved, model_type, name, text, tuned, tmp_path):
    checkpoint = Checkpoint(saved(model_type))
    after = edited(checkpoint, text, tmp_path / "v", tuned).read(name)
    kernel = kernel_for(text.split(":")[0])(resolve_edit(parse_edit_spec(text), tuned))
    before = checkpoint.read(name)
    for matrix, result in zip(
        before.reshape(-1, *before.shape[-2:]), after.reshape(-1, *after.shape[-2:]), strict=True
    ):
        assert torch.equal(result, kernel.apply(matrix.T.contiguous()).T)
        assert not torch.equal(result, kernel.apply(matrix))


def test_edits_of_an_expert_do_not_depend_on_the_others(saved, tmp_path):
    checkpoint = Checkpoint(saved("gpt_oss"))
    name = "model.layers.0.mlp.experts.down_proj"
    for number, spec in enumerate(SPECS):
        after = edited(checkpoint, spec, tmp_path / str(number)).read(name)
        kernel = kernel_for(spec.split(":")[0])(resolve_edit(parse_edit_spec(spec)))
        for matrix, result in zip(checkpoint.read(name), after, strict=True):
            assert torch.equal(result, kernel.apply(matrix.T.contiguous()).T)


@pytest.mark.parametrize("rank", [16, 17])
def test_a_rank_that_keeps_any_selected_matrix_is_refused_before_anything_is_written(saved, tmp_path, rank):
    checkpoint = Checkpoint(saved("mixtral"))
    with pytest.raises(BadInput, match=rf"rank {rank} leaves tensor 'model\.layers\.0\.self_attn\.k_proj"):
        edited(checkpoint, f"lowrank_svd:{rank}:all", tmp_path / "v")
    assert list((tmp_path / "v").iterdir()) == []


@pytest.mark.parametrize("scope", ["ffn", "attn", "all"])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.gate_up_proj_blocks",
        "model.layers.1.mlp.experts.down_proj_scales",
        "model.layers.0.mlp.up_proj.qweight",
        "model.layers.0.self_attn.q_proj.weight_packed",
    ],
)
def test_packed_weights_are_refused_with_the_tensors_name(saved, checkpoint_of, scope, name):
    plain = Checkpoint(saved("llama"))
    tensors = {known: plain.read(known) for known in plain.names()}
    packed = checkpoint_of(tensors | {name: torch.zeros(2, 2, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=rf"'{name}' \(U8\) holds weights in a packed"):
        select(packed, parse_scope(scope))

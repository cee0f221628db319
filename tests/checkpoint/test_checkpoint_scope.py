import pytest
from safetensors.torch import save_file
from torch import zeros  # noqa: TID253

from evpack.catalog.edit_spec import parse_scope
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.scope import place, placements, select, unknown_matrices
from evpack.errors import BadInput, CheckpointError

# Names on disk of one block (dims), by what an edit means with them. `never` is in no scope.
FAMILIES = {
    "llama, mistral, qwen2": {
        "block": "model.layers.{}.",
        "ffn": ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"],
        "attn": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
        "never": ["self_attn.q_proj.bias:1", "input_layernorm.weight:1", "post_attention_layernorm.weight:1"],
        "outside": ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight:1"],
    },
    "mixtral": {
        "block": "model.layers.{}.",
        "ffn": [f"block_sparse_moe.experts.{e}.{w}.weight" for e in range(3) for w in ("w1", "w2", "w3")],
        "attn": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
        "never": ["block_sparse_moe.gate.weight", "input_layernorm.weight:1"],
        "outside": ["model.embed_tokens.weight", "lm_head.weight"],
    },
    "qwen2-moe, qwen3-moe, olmoe": {
        "block": "model.layers.{}.",
        "ffn": [
            *(f"mlp.experts.{e}.{w}_proj.weight" for e in range(2) for w in ("gate", "up", "down")),
            *(f"mlp.shared_expert.{w}_proj.weight" for w in ("gate", "up", "down")),
        ],
        "attn": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
        "never": ["mlp.gate.weight", "mlp.shared_expert_gate.weight", "self_attn.q_norm.weight:1"],
        "outside": ["model.embed_tokens.weight"],
    },
    "gpt-oss": {
        "block": "model.layers.{}.",
        "ffn": ["mlp.experts.gate_up_proj:3", "mlp.experts.down_proj:3"],
        "attn": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
        "never": [
            "mlp.experts.gate_up_proj_bias",
            "mlp.experts.down_proj_bias",
            "mlp.router.weight",
            "mlp.router.bias:1",
            "self_attn.sinks:1",
        ],
        "outside": ["model.embed_tokens.weight", "lm_head.weight"],
    },
    "gpt-2": {
        "block": "transformer.h.{}.",
        "ffn": ["mlp.c_fc.weight", "mlp.c_proj.weight"],
        "attn": ["attn.c_attn.weight", "attn.c_proj.weight"],
        "never": ["attn.bias:4", "ln_1.weight:1", "ln_2.weight:1", "mlp.c_fc.bias:1"],
        "outside": ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight:1"],
    },
    "gpt-neox": {
        "block": "gpt_neox.layers.{}.",
        "ffn": ["mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"],
        "attn": ["attention.query_key_value.weight", "attention.dense.weight"],
        "never": ["attention.rotary_emb.inv_freq:1", "input_layernorm.weight:1", "attention.dense.bias:1"],
        "outside": ["gpt_neox.embed_in.weight", "embed_out.weight"],
    },
    "phi-3": {
        "block": "model.layers.{}.",
        "ffn": ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
        "attn": ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"],
        "never": ["input_layernorm.weight:1"],
        "outside": ["model.embed_tokens.weight", "lm_head.weight"],
    },
    "granite-moe": {
        "block": "model.layers.{}.",
        "ffn": [
            *(f"block_sparse_moe.{x}_linear.weight:3" for x in ("input", "output")),
            *(f"shared_mlp.{x}_linear.weight" for x in ("input", "output")),
        ],
        "attn": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
        "never": ["block_sparse_moe.router.layer.weight", "input_layernorm.weight:1"],
        "outside": ["model.embed_tokens.weight"],
    },
}
LAYERS = 11  # more than ten: textual and numeric order differ


def split(entry):
    name, _, dims = entry.partition(":")
    return name, int(dims or 2)


@pytest.fixture(params=FAMILIES, ids=lambda name: name.split(",")[0])
def model(request, tmp_path):
    """The family's description and a checkpoint with its names."""
    family = FAMILIES[request.param]
    entries = [split(entry) for entry in family["outside"]]
    for layer in range(LAYERS):
        for key in ("ffn", "attn", "never"):
            entries += [(family["block"].format(layer) + name, dims) for name, dims in map(split, family[key])]
    save_file({name: zeros([2] * dims) for name, dims in entries}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return family, Checkpoint(tmp_path)


def expected(family, keys, layers=range(LAYERS)):
    return sorted(family["block"].format(n) + split(entry)[0] for n in layers for key in keys for entry in family[key])


@pytest.mark.parametrize(
    ("scope", "keys", "layers"),
    [
        ("ffn", ["ffn"], range(LAYERS)),
        ("attn", ["attn"], range(LAYERS)),
        ("all", ["ffn", "attn"], range(LAYERS)),
        ("ffn@layer=1", ["ffn"], [1]),
        ("attn@layers=2", ["attn"], [0, 1]),
        ("all@layer=0,layer=10", ["ffn", "attn"], [0, 10]),
        ("ffn@layer=5,layers=1", ["ffn"], [0, 5]),
    ],
)
def test_each_family_selects_its_projections_and_nothing_else(model, scope, keys, layers):
    family, checkpoint = model
    assert sorted(p.name for p in select(checkpoint, parse_scope(scope))) == expected(family, keys, layers)


def test_nothing_of_a_known_family_is_unknown(model):
    assert unknown_matrices(model[1], parse_scope("all")) == []


def test_matrices_that_no_scope_means_are_named(tmp_path):
    block = "model.layers.{}."
    shapes = {
        "self_attn.q_proj.weight": (4, 4),
        "mamba.in_proj.weight": (8, 4),
        "mamba.conv1d.weight": (8, 1, 4),
        "mixer.experts_bias": (2, 4),
        "mlp.router.weight": (2, 4),
        "norm.weight": (4,),
    }
    tensors = {block.format(layer) + name: zeros(shape) for layer in range(2) for name, shape in shapes.items()}
    save_file(tensors | {"model.embed_tokens.weight": zeros(8, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    assert unknown_matrices(checkpoint, parse_scope("ffn")) == [
        f"model.layers.{n}.mamba.in_proj.weight" for n in (0, 1)
    ]
    assert unknown_matrices(checkpoint, parse_scope("attn@layer=1")) == ["model.layers.1.mamba.in_proj.weight"]
    with pytest.raises(CheckpointError, match=r"matches no tensor; the blocks hold 'model\.layers\.0\.mamba\.in_proj"):
        select(checkpoint, parse_scope("ffn"))


def test_the_order_is_by_block_number(model):
    _, checkpoint = model
    blocks = [place.layer for place in placements(checkpoint)]
    assert blocks == sorted(blocks)
    assert blocks[-1] == LAYERS - 1


def test_each_family_has_the_places_that_faults_need(model):
    _, checkpoint = model
    first = {(p.part, p.role) for p in placements(checkpoint) if p.layer == 0}
    assert {("attn", "query"), ("ffn", "down"), ("ffn", "in")} <= first


@pytest.mark.parametrize("scope", ["ffn@layer=11", "all@layer=0,layer=99"])
def test_a_layer_beyond_the_model_is_bad_input(model, scope):
    with pytest.raises(BadInput, match="blocks are 0 to 10"):
        select(model[1], parse_scope(scope))


def test_a_scope_that_matches_nothing_is_an_error(model):
    with pytest.raises(CheckpointError, match="matches no tensor"):
        select(model[1], parse_scope("ffn@layers=0"))


def test_a_model_without_known_names_is_an_error(tmp_path):
    save_file({"encoder.block.0.mixer.weight": zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for scope in ("all", "ffn@layer=1"):
        with pytest.raises(CheckpointError, match="matches no tensor"):
            select(Checkpoint(tmp_path), parse_scope(scope))


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("model.layers.0.mlp.down_proj.weight", 1),
        ("model.layers.0.mlp.down_proj.weight", 3),
        ("model.layers.0.mlp.experts.down_proj", 2),
        ("model.layers.0.block_sparse_moe.input_linear.weight", 2),
        ("model.layers.0.shared_mlp.input_linear.weight", 3),
        ("model.layers.0.mlp.down_proj.weight_scale", 2),
        ("layers.0.mlp.gate.weight", 2),
        ("mlp.down_proj.weight", 2),
        ("model.layers.x.mlp.down_proj.weight", 2),
    ],
)
def test_familiar_words_are_not_enough(name, dims):
    assert place(name, dims) is None


def test_experts_are_marked():
    assert place("model.layers.0.block_sparse_moe.experts.3.w2.weight", 2).expert
    assert place("model.layers.0.mlp.experts.down_proj", 3).expert
    assert not place("model.layers.0.mlp.shared_expert.down_proj.weight", 2).expert
    assert not place("model.layers.0.mlp.down_proj.weight", 2).expert


@pytest.mark.parametrize(
    ("model_type", "name", "inputs_first"),
    [
        ("gpt2", "h.0.mlp.c_fc.weight", True),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", True),
        ("gpt_bigcode", "transformer.h.0.mlp.c_fc.weight", False),
        ("gpt_neo", "transformer.h.0.attn.attention.q_proj.weight", False),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj", True),
        ("gpt_oss", "model.layers.0.self_attn.o_proj.weight", False),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", False),
        ("", "model.layers.0.mlp.up_proj.weight", False),
    ],
)
def test_which_way_round_a_weight_is_stored_depends_on_the_model_type(model_type, name, inputs_first):
    placement = place(name, 3 if ".experts." in name else 2, model_type)
    assert placement is not None and placement.inputs_first is inputs_first

import json

import pytest
import torch  # noqa: TID253

from evpack.checkpoint.loading import load_model
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.writer import VariantWriter
from evpack.errors import CheckpointError

FAMILIES = [
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"tie_word_embeddings": False}),
    ("qwen2", {}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("phi3", {}),
]
IDS = torch.arange(48).reshape(3, 16)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def variant(tmp_path):
    """A variant of a checkpoint: changed tensors by name, and what else `finish` takes."""

    def make(checkpoint, changes, **options):
        root = tmp_path / f"v{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        with VariantWriter(root, checkpoint, changes) as writer:
            for name, change in changes.items():
                before = checkpoint.read(name)
                writer.put(name, before, change(before.clone()))
            return writer.finish(scenario="s", kind="error", declaration=None, metadata={}, **options)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("model_type", "options"), FAMILIES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_baseline_equals_what_transformers_loads(family, model_type, options, dtype):
    import transformers

    root = family(model_type, **options)
    reference = transformers.AutoModelForCausalLM.from_pretrained(root, dtype=dtype).eval()
    model, report = load_model(Checkpoint(root), dtype)
    assert not (report.missing or report.unexpected or report.mismatched or report.unexplained)
    assert not model.training
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    assert torch.equal(logits(model), logits(reference))


@pytest.mark.parametrize(
    ("model_type", "options", "name"),
    [
        ("llama", {"tie_word_embeddings": True}, "model.layers.1.mlp.down_proj.weight"),
        ("mixtral", {"num_local_experts": 4}, "model.layers.0.block_sparse_moe.experts.2.w2.weight"),
    ],
)
def test_a_variant_equals_the_same_change_made_in_full(family, variant, tmp_path, model_type, options, name):
    import transformers
    from safetensors.torch import save_file

    checkpoint = Checkpoint(family(model_type, **options))
    delta = variant(checkpoint, {name: lambda t: t * 3})
    full = tmp_path / "full"
    full.mkdir()
    save_file({n: delta.read(n) for n in delta.names()}, full / "model.safetensors", metadata={"format": "pt"})
    (full / "config.json").write_text(json.dumps(delta.config()))
    reference = transformers.AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32).eval()
    model, report = load_model(delta, torch.float32)
    assert report.unexplained == ()
    assert torch.equal(logits(model), logits(reference))
    assert not torch.equal(logits(model), logits(load_model(checkpoint, torch.float32)[0]))


def test_non_finite_weights_load_as_they_are(family, variant):
    checkpoint = Checkpoint(family("llama", tie_word_embeddings=True))
    delta = variant(checkpoint, {"model.layers.0.self_attn.q_proj.weight": lambda t: t.fill_(float("nan"))})
    model, report = load_model(delta, torch.float32)
    assert report.unexplained == ()
    assert bool(logits(model).isnan().all())


def test_a_missing_head_is_reported_and_not_silently_random(family, variant):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    model, report = load_model(variant(checkpoint, {}, removed=["lm_head.weight"]), torch.float32)
    assert bool(model.lm_head.weight.isnan().all())
    assert bool(logits(model).isnan().all())
    assert report.missing == ("lm_head.weight",)
    assert report.unexplained == ("missing: lm_head.weight",)


def test_a_missing_head_that_is_tied_by_the_config_is_no_fault(family, variant):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    delta = variant(checkpoint, {}, removed=["lm_head.weight"], config_overrides={"tie_word_embeddings": True})
    model, report = load_model(delta, torch.float32)
    assert report.unexplained == ()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_added_layer_that_was_never_stored_is_reported(family, variant):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    _, report = load_model(variant(checkpoint, {}, config_overrides={"num_hidden_layers": 3}), torch.float32)
    assert {name.split(".")[2] for name in report.missing} == {"2"}
    assert len(report.unexplained) == len(report.missing) > 0


def test_a_block_left_on_disk_by_a_shorter_config_is_unexplained(family, variant):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    _, report = load_model(variant(checkpoint, {}, config_overrides={"num_hidden_layers": 1}), torch.float32)
    assert report.missing == ()
    assert set(report.unexplained) == {f"unexpected: {name}" for name in report.unexpected}
    assert all(name.startswith("model.layers.1.") for name in report.unexpected)


def test_a_block_dropped_together_with_its_config_is_no_fault(family, variant):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    block = [name for name in checkpoint.names() if name.startswith("model.layers.1.")]
    delta = variant(checkpoint, {}, removed=block, config_overrides={"num_hidden_layers": 1})
    assert load_model(delta, torch.float32)[1].unexplained == ()


def test_a_shape_the_config_does_not_know_is_reported(family, variant):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    grow = {"model.embed_tokens.weight": lambda t: torch.cat([t, t[:8]])}
    model, report = load_model(variant(checkpoint, grow), torch.float32)
    assert bool(logits(model).isnan().all())
    assert report.mismatched == ("model.embed_tokens.weight: stored [72, 32], model [64, 32]",)
    assert report.unexplained == (f"mismatched: {report.mismatched[0]}",)


def test_a_missing_expert_is_not_filled_silently(family, variant):
    checkpoint = Checkpoint(family("mixtral", num_local_experts=4))
    delta = variant(checkpoint, {}, removed=["model.layers.0.block_sparse_moe.experts.3.w2.weight"])
    _, report = load_model(delta, torch.float32)
    assert any("experts.down_proj" in line for line in report.unexplained)


def test_a_stray_tensor_of_the_baseline_itself_is_seen_but_is_no_fault_of_a_subject(make_checkpoint, family, variant):
    source = Checkpoint(family("llama", tie_word_embeddings=True))
    tensors = {name: source.read(name) for name in source.names()} | {"model.layers.0.odd.weight": torch.ones(2)}
    checkpoint = Checkpoint(make_checkpoint(tensors, config=source.config()))
    other_config = {"config_overrides": {"rms_norm_eps": 0.1}}
    deltas = (variant(checkpoint, {"model.norm.weight": lambda t: t * 2}, **o) for o in ({}, other_config))
    for subject in (checkpoint, *deltas):
        _, report = load_model(subject, torch.float32)
        assert report.unexpected == ("model.layers.0.odd.weight",)
        assert report.unexplained == ()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "unheard_of"}, "'unheard_of'"),
        ({}, "None"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "never run"),
        ({"model_type": "llama", "hidden_size": "wide"}, "llama"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_named(make_checkpoint, tensors, config, says):
    checkpoint = Checkpoint(make_checkpoint(tensors, config=config))
    with pytest.raises(CheckpointError, match=r"model type|configuration|cannot load") as caught:
        load_model(checkpoint, torch.float32)
    assert says in str(caught.value)


def test_loading_leaves_the_digests_alone(family):
    checkpoint = Checkpoint(family("mistral", tie_word_embeddings=False))
    before = checkpoint.digest()
    load_model(checkpoint, torch.float32)
    assert checkpoint.digest() == before == Checkpoint(checkpoint.path).digest()


@pytest.mark.parametrize(
    ("model_type", "options", "name"),
    [
        ("mistral", {"tie_word_embeddings": False}, "model.layers.1.mlp.down_proj.weight"),
        ("mixtral", {"num_local_experts": 4}, "model.layers.0.block_sparse_moe.experts.2.w2.weight"),
    ],
)
def test_a_tensor_that_cannot_be_read_while_loading_is_named(family, variant, model_type, options, name):
    checkpoint = Checkpoint(family(model_type, **options))
    delta = variant(checkpoint, {name: lambda t: t * 3})
    file = delta.path / "delta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.* digest"):
        load_model(delta, torch.float32)

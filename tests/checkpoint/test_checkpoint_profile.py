import json

import pytest

from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.profile import build_profile, open_baseline, read_profile, write_profile
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.writer import VariantWriter
from evpack.errors import CheckpointError
from evpack.publishing import AlreadyPublished
from evpack.rundir import RunDir


@pytest.fixture
def model(family, tmp_path):
    """A model directory that was set up."""
    model = RunDir(tmp_path / "run").model("tiny")
    model.baseline.parent.mkdir(parents=True)
    model.baseline.symlink_to(family("llama", tie_word_embeddings=True))
    write_profile(model.profile, build_profile(Checkpoint(model.baseline), model_id="org/tiny", revision="abc"))
    return model


def test_the_profile_tells_what_config_and_weights_say(model):
    content = json.loads(model.profile.read_text())
    tensors = content.pop("tensors")
    weights = sum(shard.stat().st_size for shard in Checkpoint(model.baseline).shards)
    assert content == {
        "schema": "evpack_model_profile_v1",
        "model_id": "org/tiny",
        "revision": "abc",
        "weights_bytes": weights,
        "weights_gb": round(weights / 1e9, 3),
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_position_embeddings": 64,
        "vocab_size": 64,
        "dtype_bytes": 2,
        "checkpoint_digest": Checkpoint(model.baseline).digest(),
        "config": Checkpoint(model.baseline).config(),
    }
    assert tensors.keys() == set(Checkpoint(model.baseline).names())
    assert tensors["model.norm.weight"]["dtype"] == "BF16"


def test_other_families_names_for_the_same_figures_are_found(family):
    profile = build_profile(Checkpoint(family("gpt2")), model_id="gpt2", revision=None)
    assert (profile.hidden_size, profile.num_layers, profile.num_heads, profile.num_kv_heads) == (32, 2, 4, 4)
    assert profile.max_position_embeddings == 64


def test_a_profile_is_published_once(model):
    profile = read_profile(model.profile)
    with pytest.raises(AlreadyPublished):
        write_profile(model.profile, profile)


def test_the_baseline_opens_with_its_recorded_digests(model):
    assert open_baseline(model).digest() == read_profile(model.profile).checkpoint_digest


def test_a_replaced_baseline_is_refused(model, family):
    model.baseline.unlink()
    model.baseline.symlink_to(family("llama", tie_word_embeddings=True, rms_norm_eps=0.5))
    with pytest.raises(CheckpointError, match="config is not the one"):
        open_baseline(model)
    model.baseline.unlink()
    model.baseline.symlink_to(family("mistral", tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match="recorded as"):
        open_baseline(model)


def test_a_variant_opens_over_it(model):
    directory = model.variant("double")
    directory.mkdir()
    baseline = open_baseline(model)
    with VariantWriter(directory, baseline, ["model.norm.weight"]) as writer:
        before = baseline.read("model.norm.weight")
        writer.put("model.norm.weight", before, before * 2)
        writer.finish(scenario="double", kind="error", declaration=None, metadata={})
    assert list(DeltaCheckpoint(open_baseline(model), model.variant("double")).variant.changed) == ["model.norm.weight"]


@pytest.mark.parametrize("damage", ["", "{", '{"schema": "evpack_model_profile_v1"}', "[]"])
def test_a_broken_profile_is_refused_with_the_mend(model, damage):
    model.profile.write_text(damage)
    with pytest.raises(CheckpointError) as caught:
        open_baseline(model)
    assert "setup_baseline" in caught.value.mend


def test_a_model_that_was_not_set_up_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_baseline(RunDir(tmp_path).model("tiny"))

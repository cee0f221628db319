import json

import pytest
import torch  # noqa: TID253
from safetensors.torch import load_file, save_file

from evpack.checkpoint.delta import DeltaCheckpoint, read_variant
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.writer import VariantWriter
from evpack.errors import CheckpointError

DOWN = "model.layers.0.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def baseline(make_checkpoint, tensors):
    return Checkpoint(make_checkpoint(tensors, shards=2))


@pytest.fixture
def write(baseline, tmp_path):
    def write(changes, name="variant", **options):
        directory = tmp_path / name
        directory.mkdir()
        with VariantWriter(directory, baseline, [DOWN, QUERY]) as writer:
            for tensor, change in changes.items():
                before = baseline.read(tensor)
                writer.put(tensor, before, change(before.clone()))
            settings = {"scenario": "s", "kind": "edit", "declaration": None, "metadata": {"x": 1}} | options
            return writer.finish(**settings)

    return write


def test_only_tensors_whose_bytes_changed_are_stored(write, baseline):
    variant = write({DOWN: lambda t: t * 2, QUERY: lambda t: t})
    assert list(variant.variant.changed) == [DOWN]
    assert load_file(variant.path / "delta.safetensors").keys() == {DOWN}
    assert torch.equal(variant.read(DOWN), baseline.read(DOWN) * 2)
    for name in set(baseline.names()) - {DOWN}:
        assert torch.equal(variant.read(name), baseline.read(name))
        assert variant.tensor_digest(name) == baseline.tensor_digest(name)


def test_the_manifest_says_what_changed(write, baseline):
    variant = write({DOWN: lambda t: t * 2}, declaration={"tensors": [DOWN]})
    content = json.loads((variant.path / "variant.json").read_text())
    assert content == {
        "schema": "evpack_variant_v1",
        "scenario": "s",
        "kind": "edit",
        "baseline_digest": baseline.digest(),
        "changed": {
            DOWN: {
                "before_sha256": baseline.tensor_digest(DOWN),
                "after_sha256": variant.tensor_digest(DOWN),
                "dtype": "BF16",
                "shape": [8, 12],
            }
        },
        "removed": [],
        "config_overrides": {},
        "declaration": {"tensors": [DOWN]},
        "metadata": {"x": 1},
    }


def test_a_variant_has_the_digest_of_the_same_content_in_full(write, baseline, make_checkpoint, tensors):
    variant = write({DOWN: lambda t: t + 1}, config_overrides={"rope_theta": 3.0}, removed=["model.norm.weight"])
    full = {name: variant.read(name) for name in variant.names()}
    config = {"model_type": "llama", "rope_theta": 3.0}
    assert "model.norm.weight" not in full
    assert variant.config() == config
    assert Checkpoint(make_checkpoint(full, name="full", config=config)).digest() == variant.digest()
    assert variant.digest() != baseline.digest()


def test_equal_variants_are_equal_byte_for_byte(write):
    one, two = (write({DOWN: lambda t: t / 3}, name=name) for name in ("one", "two"))
    for file in ("delta.safetensors", "variant.json"):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes()


def test_a_variant_that_changes_nothing_is_refused(write):
    with pytest.raises(CheckpointError, match="changed no byte"):
        write({DOWN: lambda t: t})


def test_a_variant_that_only_removes_or_overrides_is_one(write):
    assert write({}, name="a", removed=[DOWN]).names() == sorted(
        {"model.embed_tokens.weight", QUERY, "model.norm.weight"}
    )
    assert write({}, name="b", config_overrides={"tie_word_embeddings": False}).config()["tie_word_embeddings"] is False


def test_a_removed_tensor_cannot_be_read(write):
    with pytest.raises(CheckpointError, match="is removed"):
        write({}, removed=[DOWN]).read(DOWN)


def test_nothing_openable_is_left_when_the_work_fails(baseline, tmp_path):
    (tmp_path / "v").mkdir()
    with pytest.raises(RuntimeError), VariantWriter(tmp_path / "v", baseline, [DOWN]) as writer:
        before = baseline.read(DOWN)
        writer.put(DOWN, before, before * 2)
        raise RuntimeError
    assert not (tmp_path / "v" / "variant.json").exists()
    with pytest.raises(CheckpointError):
        DeltaCheckpoint(baseline, tmp_path / "v")


def test_a_variant_of_another_baseline_is_refused(write, make_checkpoint, tensors):
    variant = write({DOWN: lambda t: t * 2})
    other = Checkpoint(make_checkpoint(tensors | {"extra": torch.ones(1)}, name="other"))
    with pytest.raises(CheckpointError, match="not from this baseline"):
        DeltaCheckpoint(other, variant.path)


def test_a_flipped_byte_in_a_delta_is_noticed_when_it_is_read(write, baseline):
    variant = write({DOWN: lambda t: t * 2})
    delta = variant.path / "delta.safetensors"
    content = bytearray(delta.read_bytes())
    content[-5] ^= 4
    delta.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"'{DOWN}' do not have their digest"):
        DeltaCheckpoint(baseline, variant.path).read(DOWN)


def test_a_delta_with_other_tensors_than_the_manifest_is_refused(write, baseline, tensors):
    variant = write({DOWN: lambda t: t * 2})
    save_file({QUERY: tensors[QUERY]}, variant.path / "delta.safetensors")
    with pytest.raises(CheckpointError, match=r"in delta\.safetensors"):
        DeltaCheckpoint(baseline, variant.path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.update(schema="evpack_variant_v9"),
        lambda m: m.pop("declaration"),
        lambda m: m.update(kind="other"),
        lambda m: m.update(surprise=1),
        lambda m: m.update(removed=["ghost"]),
    ],
)
def test_a_malformed_manifest_is_refused(write, baseline, damage):
    variant = write({DOWN: lambda t: t * 2})
    path = variant.path / "variant.json"
    manifest = json.loads(path.read_text())
    damage(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        DeltaCheckpoint(baseline, variant.path)


def test_a_variant_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_variant(tmp_path)

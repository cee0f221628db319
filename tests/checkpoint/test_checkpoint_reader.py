import json
import shutil

import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from evpack.checkpoint.reader import Checkpoint, contents_of
from evpack.errors import CheckpointError, MissingFile

INDEX = "model.safetensors.index.json"


def edit_index(root, change):
    index = json.loads((root / INDEX).read_text())
    change(index["weight_map"])
    (root / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_every_tensor(make_checkpoint, tensors, shards):
    checkpoint = Checkpoint(make_checkpoint(tensors, shards=shards))
    assert checkpoint.names() == sorted(tensors)
    assert len(checkpoint.shards) == shards
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.info(name).shape == tuple(tensor.shape)


def test_links_to_a_cache_are_followed(make_checkpoint, tensors, tmp_path):
    source = make_checkpoint(tensors, shards=2)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in source.iterdir():
        (linked / file.name).symlink_to(file)
    assert Checkpoint(linked).digest() == Checkpoint(source).digest()


def test_the_digest_is_of_the_content_not_of_its_storage(make_checkpoint, tensors):
    one = Checkpoint(make_checkpoint(tensors, name="one"))
    three = Checkpoint(make_checkpoint(tensors, shards=3, name="three"))
    assert one.digest() == three.digest()


@pytest.mark.parametrize("offset", [-1, -77, -300])
def test_the_digest_depends_on_the_bytes_of_the_weights(make_checkpoint, tensors, offset):
    root = make_checkpoint(tensors)
    before = Checkpoint(root).digest()
    content = bytearray((root / "model.safetensors").read_bytes())
    content[offset] ^= 1
    (root / "model.safetensors").write_bytes(content)
    assert Checkpoint(root).digest() != before


def test_the_digest_depends_on_the_config_and_on_names_types_and_shapes(make_checkpoint, tensors):
    base = Checkpoint(make_checkpoint(tensors, name="base")).digest()
    name = "model.layers.0.mlp.down_proj.weight"
    others = {
        "config": make_checkpoint(tensors, name="config", config={"model_type": "llama", "rope_theta": 1}),
        "shape": make_checkpoint(tensors | {name: tensors[name].reshape(12, 8)}, name="shape"),
        "dtype": make_checkpoint(tensors | {name: tensors[name].view(torch.int16)}, name="dtype"),
        "name": make_checkpoint({**tensors, "extra": torch.zeros(0)}, name="name"),
    }
    digests = {key: Checkpoint(root).digest() for key, root in others.items()}
    assert base not in digests.values()
    assert len(set(digests.values())) == len(digests)


def test_records_spare_reading_and_must_fit(make_checkpoint, tensors):
    root = make_checkpoint(tensors)
    records = contents_of(Checkpoint(root)).tensors
    digest = Checkpoint(root).digest()
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, root / "model.safetensors")
    stale = Checkpoint(root, records)
    assert stale.digest() == digest, "known digests are not recomputed"
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' are not those recorded"):
        stale.read("model.norm.weight")
    save_file({"other": torch.zeros(3)}, root / "model.safetensors")
    with pytest.raises(CheckpointError, match="recorded as"):
        Checkpoint(root, records)


def test_what_was_measured_is_not_read_again_for_its_digest(make_checkpoint, tensors):
    root = make_checkpoint(tensors)
    digest = Checkpoint(root).digest()
    checkpoint = Checkpoint(root)
    for name in checkpoint.names():
        assert torch.equal(checkpoint.measure(name), Checkpoint(root).read(name))
    (root / "model.safetensors").unlink()
    assert checkpoint.digest() == digest


def test_a_callers_change_of_the_config_stays_with_the_caller(make_checkpoint, tensors):
    checkpoint = Checkpoint(make_checkpoint(tensors, config={"model_type": "llama", "rope": {"theta": 1}}))
    checkpoint.config()["rope"]["theta"] = 2
    assert checkpoint.config()["rope"]["theta"] == 1


def test_a_missing_directory_is_the_operators_fault(tmp_path):
    with pytest.raises(MissingFile, match="does not exist"):
        Checkpoint(tmp_path / "nowhere")


def test_a_missing_shard_is_named(make_checkpoint, tensors):
    root = make_checkpoint(tensors, shards=3)
    (root / "model-1.safetensors").unlink()
    weight_map = json.loads((root / INDEX).read_text())["weight_map"]
    lost = min(name for name, shard in weight_map.items() if shard == "model-1.safetensors")
    with pytest.raises(CheckpointError, match=rf"model-1\.safetensors, .* for tensor '{lost}', is missing \(1 of 3"):
        Checkpoint(root)


def test_a_truncated_shard_is_named(make_checkpoint, tensors):
    root = make_checkpoint(tensors, shards=3)
    shard = root / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors.*truncated"):
        Checkpoint(root)


@pytest.mark.parametrize(
    "shard",
    ["../model-0.safetensors", "/etc/passwd", "sub/model-0.safetensors", "..", "a\\b.safetensors", "x.bin", "", 7],
)
def test_an_index_cannot_lead_out_of_the_directory(make_checkpoint, tensors, shard):
    root = make_checkpoint(tensors, shards=2)
    shutil.copy(root / "model-0.safetensors", root.parent / "model-0.safetensors")
    edit_index(root, lambda weight_map: weight_map.update({"model.norm.weight": shard}))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        Checkpoint(root)


def test_a_shard_of_a_name_that_no_file_can_have_is_missing(make_checkpoint, tensors):
    root = make_checkpoint(tensors, shards=2)
    edit_index(root, lambda weight_map: weight_map.update({"model.norm.weight": f"{'x' * 300}.safetensors"}))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight', is missing \(1 of "):
        Checkpoint(root)


def test_an_index_that_disagrees_with_its_shards_is_refused(make_checkpoint, tensors):
    root = make_checkpoint(tensors, shards=2)
    edit_index(root, lambda weight_map: weight_map.update({"ghost": "model-0.safetensors"}))
    with pytest.raises(CheckpointError, match="'ghost' named by the index is not in"):
        Checkpoint(root)


def test_a_tensor_hidden_from_the_index_is_refused(make_checkpoint, tensors):
    root = make_checkpoint(tensors, shards=2)
    edit_index(root, lambda weight_map: weight_map.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' is not named by the index"):
        Checkpoint(root)


def test_a_tensor_in_two_shards_is_refused(make_checkpoint, tensors):
    root = make_checkpoint(tensors, shards=2)
    for shard in ("model-0.safetensors", "model-1.safetensors"):
        save_file({"twice": torch.ones(2)}, root / shard)
    edit_index(root, lambda weight_map: (weight_map.clear(), weight_map.update({"twice": "model-0.safetensors"})))
    assert Checkpoint(root).names() == ["twice"], "a shard that the index does not name is not part of it"
    text = '{"weight_map": {"twice": "model-0.safetensors", "twice": "model-1.safetensors"}}'
    (root / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="stands twice"):
        Checkpoint(root)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}'])
def test_a_broken_config_is_refused(make_checkpoint, tensors, text):
    root = make_checkpoint(tensors)
    (root / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint(root)


def test_other_weight_formats_are_refused_with_the_mend(make_checkpoint, tensors):
    root = make_checkpoint(tensors)
    (root / "model.safetensors").rename(root / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin") as caught:
        Checkpoint(root)
    assert "safetensors" in caught.value.mend


def test_an_unknown_tensor_is_named(make_checkpoint, tensors):
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        Checkpoint(make_checkpoint(tensors)).read("x")

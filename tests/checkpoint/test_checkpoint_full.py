import json
import shutil

import pytest
import torch  # noqa: TID253
import transformers  # noqa: TID253
from typer.testing import CliRunner

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.checkpoint.container import info_of
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.full import to_full, write_full
from evpack.checkpoint.loading import load_model
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.writer import VariantWriter
from evpack.cli.main import build_app
from evpack.edits import apply_edit
from evpack.errors import BadInput, CheckpointError
from evpack.faults import apply_fault

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def pair(make_checkpoint, tensors, tmp_path):
    """A baseline in two shards and a variant that changes, adds and removes a tensor."""
    baseline = Checkpoint(make_checkpoint(tensors, shards=2, config={"model_type": "llama", "a": 1}))
    (baseline.path / "tokenizer.json").write_text("{}")
    (baseline.path / "evil.py").write_text("raise SystemExit")
    directory = tmp_path / "variant"
    directory.mkdir()
    extra = torch.arange(6.0).reshape(2, 3)
    info = {"extra.weight": info_of(extra)}
    with VariantWriter(directory, baseline, [DOWN], info) as writer:
        before = baseline.read(DOWN)
        writer.put(DOWN, before, before * 2)
        writer.put("extra.weight", None, extra)
        variant = writer.finish(
            scenario="s", kind="edit", declaration=None, metadata={}, removed=["model.norm.weight"],
            config_overrides={"a": 2},
        )  # fmt: skip
    return baseline, variant


def test_the_full_form_is_the_same_checkpoint(pair, tmp_path):
    baseline, variant = pair
    (tmp_path / "full").mkdir()
    full = write_full(variant, baseline, tmp_path / "full")
    plain = Checkpoint(tmp_path / "full")
    assert full.is_full and not variant.is_full
    assert full.digest() == variant.digest() == plain.digest()
    assert full.names() == variant.names() == plain.names()
    for name in full.names():
        assert torch.equal(full.read(name), variant.read(name))
        assert full.info(name) == variant.info(name)
    assert not (tmp_path / "full" / "evil.py").exists()
    assert (tmp_path / "full" / "tokenizer.json").exists()
    index = json.loads((tmp_path / "full" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == full.names()
    assert index["metadata"]["total_size"] == sum(full.info(name).nbytes for name in full.names())


def test_a_delta_becomes_full_in_its_place(pair):
    baseline, variant = pair
    before = (variant.path / "variant.json").read_bytes()
    full = to_full(variant, baseline)
    assert full.digest() == variant.digest()
    assert not (variant.path / "delta.safetensors").exists()
    assert (variant.path / "variant.json").read_bytes() == before


def test_every_byte_of_the_full_form_is_checked(pair):
    baseline, variant = pair
    full = to_full(variant, baseline)
    for shard in Checkpoint(full.path).shards:
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    reopened = DeltaCheckpoint(baseline, full.path)
    failed = []
    for name in reopened.names():
        try:
            reopened.read(name)
        except CheckpointError as error:
            assert name in error.what
            failed.append(name)
    assert len(failed) == 2


@pytest.mark.parametrize("damage", ["config", "tensor"])
def test_a_full_form_that_is_not_the_variant_is_refused(pair, damage):
    baseline, variant = pair
    full = to_full(variant, baseline)
    if damage == "config":
        (full.path / "config.json").write_text('{"model_type": "llama", "a": 1}')
    else:
        index = full.path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        shard = content["weight_map"]["extra.weight"]
        content["weight_map"] = {n: s for n, s in content["weight_map"].items() if s == shard}
        index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"config\.json is not|is None in the weights"):
        DeltaCheckpoint(baseline, full.path)


def test_transformers_loads_the_full_form_and_gives_the_deltas_losses(family, tmp_path):
    baseline = Checkpoint(family("llama"))
    (tmp_path / "variant").mkdir()
    edit = resolve_edit(parse_edit_spec("quant_rtn:4:8:all"), None)
    variant = apply_edit(baseline, edit, tmp_path / "variant", scenario="s")
    ids = torch.arange(24).reshape(2, 12)
    mine, report = load_model(variant, torch.bfloat16)
    assert not report.unexplained
    full = to_full(variant, baseline)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        full.path, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again, _ = load_model(full, torch.bfloat16)
    with torch.no_grad():
        logits = [one.eval()(ids).logits for one in (mine, again, model)]
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_a_fault_of_one_tensor_costs_that_tensor(family, tmp_path):
    baseline = Checkpoint(family("llama"))
    (tmp_path / "variant").mkdir()
    variant = apply_fault(baseline, "nan_injection", tmp_path / "variant", scenario="s")
    (name,) = variant.variant.changed
    written = sum(path.stat().st_size for path in variant.path.iterdir())
    assert written <= baseline.info(name).nbytes + 64_000


def test_export_writes_a_directory_that_was_not_there(pair, tmp_path):
    baseline, variant = pair
    out = tmp_path / "out"
    command = ["variant", "export", str(variant.path), "--baseline", str(baseline.path), "--out", str(out)]
    result = CliRunner().invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    assert variant.digest() in result.output
    assert Checkpoint(out).digest() == variant.digest()
    again = CliRunner().invoke(build_app(), command)
    assert isinstance(again.exception, BadInput) and "exists already" in again.exception.what


def test_export_finds_the_baseline_beside_the_variant(pair, tmp_path):
    baseline, variant = pair
    models = tmp_path / "models"
    shutil.copytree(variant.path, models / "s")
    (models / "baseline").symlink_to(baseline.path.absolute())
    result = CliRunner().invoke(build_app(), ["variant", "export", str(models / "s"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert Checkpoint(tmp_path / "out").digest() == variant.digest()


@pytest.mark.parametrize(("name", "said"), [(".", "is not a variant"), ("nowhere", "does not exist")])
def test_export_of_something_else_is_bad_input(pair, tmp_path, name, said):
    baseline, _ = pair
    (tmp_path / "other").mkdir()
    where = str(tmp_path / "other" / name)
    command = ["variant", "export", where, "--baseline", str(baseline.path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(build_app(), command)
    assert isinstance(result.exception, BadInput) and said in result.exception.what


def test_export_leaves_variant_baseline_and_packs_as_they_are(pair, tmp_path):
    baseline, variant = pair
    pack = tmp_path / "pack"
    pack.mkdir()
    for name in ("manifest.json", "checksums.sha256"):
        (pack / name).write_text("")
    for place in (baseline.path, variant.path, pack):
        before = sorted(place.iterdir())
        command = ["variant", "export", str(variant.path), "--baseline", str(baseline.path), "--out", str(place / "x")]
        result = CliRunner().invoke(build_app(), command)
        assert isinstance(result.exception, BadInput) and "lies inside" in result.exception.what
        assert sorted(place.iterdir()) == before


def test_nothing_is_left_of_an_export_that_fails(pair, tmp_path):
    baseline, variant = pair
    delta = variant.path / "delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-1] + b"?")
    command = ["variant", "export", str(variant.path), "--baseline", str(baseline.path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(build_app(), command)
    assert isinstance(result.exception, CheckpointError)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []

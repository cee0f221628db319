import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: TID253

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.catalog.scenarios import Scenario
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.profile import build_profile, open_baseline, write_profile
from evpack.data.windows import WindowSet
from evpack.errors import BadInput, CheckpointError, DiskFull
from evpack.home import Home
from evpack.plan.model import StepPlan, StepType, step_id
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.create import create
from tests.plans import campaign_plan, model_plan

SPEC = "quant_rtn:4:8:ffn"


def scenario(name, **generation):
    category = "clean" if generation["kind"] == "edit" else "error_injection"
    strictness = "must_pass" if generation["kind"] == "edit" else "must_detect"
    return Scenario.model_validate(
        {"id": name, "category": category, "failure_class": "x", "strictness": strictness, "generation": generation}
    )


SCENARIOS = (
    scenario("quant", kind="edit", edit_spec=SPEC, version="clean"),
    scenario("nan", kind="error", error_type="nan_injection"),
    scenario("meteor", kind="error", error_type="meteor"),
)


@pytest.fixture
def context(tmp_path, block, checkpoint_of):
    """The context of a create step over a model that was set up."""
    return set_up(tmp_path, checkpoint_of(block))


def set_up(tmp_path, checkpoint):
    run = RunDir(tmp_path / "run")
    model = run.model("tiny")
    model.baseline.parent.mkdir(parents=True)
    model.baseline.symlink_to(checkpoint.path)
    write_profile(model.profile, build_profile(checkpoint, model_id="tiny", revision=None))
    model.windows.mkdir()
    WindowSet(np.arange(32, dtype=np.int32).reshape(4, 8) % 16, (), "text", "0" * 64, 8).save(model.windows)
    plan = campaign_plan([], models=(model_plan("tiny"),), scenarios=SCENARIOS)

    def make(name, edit=None):
        step = StepPlan(
            id=step_id(StepType.CREATE, "tiny", name), type=StepType.CREATE, model="tiny", scenario=name, edit=edit
        )
        return StepContext(run=run, plan=plan, settings=Settings(), step=step, home=Home(tmp_path / "home"))

    return make


def resolved(text=SPEC, tuned=None):
    return resolve_edit(parse_edit_spec(text), tuned)


def test_an_edit_is_published_as_a_delta(context, block):
    ctx = context("quant", resolved())
    model = ctx.run.model("tiny")
    assert create(ctx) == [model.variant("quant")]
    assert sorted(p.name for p in model.variant("quant").iterdir()) == ["delta.safetensors", "variant.json"]
    variant = DeltaCheckpoint(open_baseline(model), model.variant("quant"))
    assert variant.variant.scenario == "quant"
    assert len(variant.variant.changed) == 6
    assert torch.equal(variant.read("model.embed_tokens.weight"), block["model.embed_tokens.weight"])


def test_a_fault_comes_from_the_scenarios_error_type(context):
    ctx = context("nan")
    create(ctx)
    model = ctx.run.model("tiny")
    variant = DeltaCheckpoint(open_baseline(model), model.variant("nan")).variant
    assert variant.metadata["error_type"] == "nan_injection"
    assert variant.declaration is None


def test_what_a_killed_attempt_left_is_made_again(context):
    ctx = context("quant", resolved())
    [target] = create(ctx)
    whole = {p.name: p.read_bytes() for p in target.iterdir()}
    (target / "variant.json").unlink()
    (target / "delta.safetensors").write_bytes(b"half")
    assert create(ctx) == [target]
    assert {p.name: p.read_bytes() for p in target.iterdir()} == whole
    assert [p.name for p in target.parent.iterdir() if "tmp" in p.name] == []


def test_a_skipped_edit_succeeds_without_output(context):
    ctx = context("quant", resolved("quant_rtn:clean:ffn", {"status": "skipped", "reason": "none passes"}))
    assert create(ctx) == []
    assert not ctx.run.model("tiny").variant("quant").exists()


DOWN = "model.layers.1.mlp.down_proj.weight"


def non_finite(value):
    def damage(tensor):
        tensor[0, 3] = value
        return tensor

    return damage


@pytest.mark.parametrize(
    ("damage", "spec", "error", "says"),
    [
        (non_finite(float("nan")), SPEC, CheckpointError, f"'{DOWN}' holds 1 non-finite"),
        (non_finite(float("-inf")), SPEC, CheckpointError, f"'{DOWN}' holds 1 non-finite"),
        (non_finite(1e38), "fp8_quant:e5m2:ffn", CheckpointError, f"1 entries of tensor '{DOWN}' non-finite"),
        (torch.Tensor.double, SPEC, CheckpointError, f"'{DOWN}' has element type F64"),
        (torch.Tensor.char, SPEC, CheckpointError, f"'{DOWN}' has element type I8"),
        (torch.Tensor.clone, "lowrank_svd:9:ffn@layer=1", BadInput, rf"rank 9 .*'{DOWN}' \(8 x 12\)"),
        (torch.Tensor.clone, "quant_rtn:4:8:ffn@layer=9", BadInput, "layer 9"),
        (torch.zeros_like, "quant_rtn:4:8:ffn@layer=1", CheckpointError, "changed no byte"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, block, checkpoint_of, damage, spec, error, says):
    damaged = block | {DOWN: damage(block[DOWN])}
    if "no byte" in says:
        damaged |= {name: damage(tensor) for name, tensor in block.items() if "layers.1.mlp" in name}
    ctx = set_up(tmp_path, checkpoint_of(damaged))("quant", resolved(spec))
    with pytest.raises(error, match=says):
        create(ctx)
    assert left_beside_the_baseline(ctx) == []


@pytest.mark.parametrize("name", ["quant", "nan"])
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(context, monkeypatch, name):
    class Device(io.FileIO):
        """Has room for a part of the first tensor."""

        room = 100

        def write(self, data):
            if self.room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= 50
            return super().write(data[:50])

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Device(path, "x") if a == ("xb",) else real(path, *a, **k))
    ctx = context(name, resolved() if name == "quant" else None)
    with pytest.raises(DiskFull, match=r"no space left while writing tensor '.*proj\.weight'"):
        create(ctx)
    assert left_beside_the_baseline(ctx) == []


def left_beside_the_baseline(ctx):
    """Whatever stands where a variant would."""
    return [path.name for path in ctx.run.model("tiny").baseline.parent.iterdir() if path.name != "baseline"]


def test_an_unknown_error_type_is_bad_input(context):
    with pytest.raises(BadInput, match="meteor"):
        create(context("meteor"))


def test_a_truncated_baseline_is_named(context):
    ctx = context("quant", resolved())
    shard = ctx.run.model("tiny").baseline / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        create(ctx)


def test_a_model_that_was_not_set_up_is_an_error(context):
    ctx = context("quant", resolved())
    ctx.run.model("tiny").profile.unlink()
    with pytest.raises(CheckpointError, match=r"model_profile\.json"):
        create(ctx)


def test_the_variant_says_which_baseline_it_belongs_to(context):
    ctx = context("nan")
    [target] = create(ctx)
    profile = json.loads(ctx.run.model("tiny").profile.read_text())
    assert json.loads((target / "variant.json").read_text())["baseline_digest"] == profile["checkpoint_digest"]

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.profile import build_profile, open_baseline, write_profile
from evpack.checkpoint.reader import Checkpoint
from evpack.errors import BadInput
from evpack.home import Home
from evpack.plan.model import StepPlan, StepType, step_id
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps import create as create_module
from evpack.steps.base import StepContext
from evpack.steps.create import create
from tests.plans import campaign_plan, model_plan

SPECS = {
    "rtn": "quant_rtn:4:4:all",
    "prune": "magnitude_prune:0.5:all",
    "svd": "lowrank_svd:2:ffn",
    "bad": "quant_rtn:4:4:ffn@layer=7",
}


@pytest.fixture
def model(tmp_path):
    """A model directory that was set up."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12), "self_attn.q_proj": (8, 8)}
    tensors = {
        f"model.layers.{layer}.{name}.weight": torch.randn(shape, generator=generator).bfloat16()
        for layer in range(2)
        for name, shape in shapes.items()
    }
    model = RunDir(tmp_path / "run").model("tiny")
    model.baseline.mkdir(parents=True)
    (model.baseline / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    (model.baseline / "tokenizer.json").write_text("{}")
    save_file(tensors, model.baseline / "model.safetensors")
    write_profile(model.profile, build_profile(Checkpoint(model.baseline), model_id="tiny", revision=None))
    return model


@pytest.fixture
def context(tmp_path, model):
    """The context of the create step of one of the edits."""

    def make(name, *, batch=True, storage="delta", attempt=1):
        steps = tuple(
            StepPlan(
                id=step_id(StepType.CREATE, "tiny", scenario),
                type=StepType.CREATE,
                model="tiny",
                scenario=scenario,
                edit=resolve_edit(parse_edit_spec(spec), None),
            )
            for scenario, spec in SPECS.items()
        )
        plan = campaign_plan(steps, models=(model_plan("tiny", batch_edits=batch),))
        return StepContext(
            run=RunDir(tmp_path / "run"),
            plan=plan,
            settings=Settings(variant_storage=storage),
            step=plan.step(step_id(StepType.CREATE, "tiny", name)),
            home=Home(tmp_path / "home"),
            attempt=attempt,
        )

    return make


@pytest.fixture
def passes(monkeypatch):
    """The scenarios of every pass that was made."""
    made = []
    real = create_module.apply_edits

    def counted(checkpoint, edits):
        made.append(sorted(edits))
        return real(checkpoint, edits)

    monkeypatch.setattr(create_module, "apply_edits", counted)
    return made


def contents(model):
    return {
        path.relative_to(model.baseline.parent).as_posix(): path.read_bytes()
        for path in model.baseline.parent.rglob("*")
        if path.is_file() and path.parent != model.baseline
    }


def test_the_first_step_makes_all_and_the_others_find_theirs(context, model, passes):
    assert create(context("prune")) == [model.variant("prune")]
    assert sorted(p.name for p in model.baseline.parent.iterdir()) == ["baseline", "prune", "rtn", "svd"]
    before = contents(model)
    for name in ("rtn", "svd", "prune"):
        assert create(context(name)) == [model.variant(name)]
    assert passes == [["bad", "prune", "rtn", "svd"]]
    assert contents(model) == before


def test_batch_and_single_steps_give_the_same_files(context, model):
    create(context("rtn"))
    together = contents(model)
    for name in ("rtn", "prune", "svd"):
        create(context(name, batch=False))
    assert contents(model) == together


def test_steps_at_the_same_time_share_one_pass(context, model, passes):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(create, [context(name) for name in ("rtn", "prune", "svd")]))
    assert found == [[model.variant(name)] for name in ("rtn", "prune", "svd")]
    assert len(passes) == 1


def test_an_edit_that_cannot_be_made_fails_its_own_step_only(context, model):
    with pytest.raises(BadInput, match="layer 7"):
        create(context("bad"))
    assert sorted(p.name for p in model.baseline.parent.iterdir()) == ["baseline", "prune", "rtn", "svd"]
    create(context("rtn"))


def test_a_variant_that_is_not_whole_is_made_again(context, model, passes):
    create(context("rtn"))
    before = contents(model)
    delta = model.variant("svd") / "delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:-1] + b"?")
    create(context("svd"))
    assert contents(model) == before
    assert passes[1:] == [["bad", "svd"]]


def test_a_variant_of_another_edit_is_made_again(context, model):
    create(context("rtn"))
    before = contents(model)
    for file in model.variant("prune").iterdir():
        file.write_bytes((model.variant("svd") / file.name).read_bytes())
    create(context("prune"))
    assert contents(model) == before


@pytest.mark.parametrize("batch", [True, False])
def test_full_storage_has_the_content_of_the_delta(context, model, batch):
    create(context("rtn", batch=batch))
    delta = DeltaCheckpoint(open_baseline(model), model.variant("rtn")).digest()
    create(context("rtn", batch=batch, storage="full"))
    directory = model.variant("rtn")
    assert sorted(p.name for p in directory.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "variant.json",
    ]
    variant = DeltaCheckpoint(open_baseline(model), model.variant("rtn"))
    assert variant.is_full
    assert variant.digest() == delta == Checkpoint(directory).digest()

"""Plans: the graph, the files of state/, resume, and everything that is refused before a byte is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.catalog import supported
from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Manifest
from evpack.errors import BadInput, MissingFile
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.campaign import build_plan, plan_campaign
from evpack.plan.memory import Devices, edits_share_a_pass
from evpack.plan.model import CampaignPlan, StepType, load_plan
from evpack.rundir import RunDir
from evpack.settings import Settings

NOW = "2026-11-23T12:00:00Z"
REPO = {"commit": "0" * 40}
COMMIT = "0123456789" * 4

SCENARIOS = len(parse_as(Manifest, shipped("scenarios_core.json"), "scenarios_core.json").scenarios)
"""Of the fixture suite."""

MakeSettings = Callable[..., Settings]
MakeModel = Callable[..., Path]


def accept(settings: Settings, checkpoints: Any) -> None:
    """A text check that finds nothing wrong."""


def make_plan(run: RunDir, settings: Settings, home: Home, **options: Any) -> CampaignPlan:
    return plan_campaign(run, settings, home, source_repo=REPO, **{"check_source": accept, **options})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


# --- the graph -------------------------------------------------------------------------------------------------------
def test_steps_of_one_model(make_settings: MakeSettings, home: Home) -> None:
    plan = build_plan(make_settings(), home, NOW).plan
    assert len(plan.steps) == 3 + 2 * SCENARIOS + 3
    assert plan.step("tiny.calibrate").runs == (1, 2, 3)
    assert plan.step("tiny.derive_preset").needs == ("tiny.calibrate",)
    evaluate = plan.step("tiny.quant_clean.evaluate")
    assert evaluate.runs == (1, 2, 3) and evaluate.edit is None
    assert evaluate.needs == ("tiny.quant_clean.create", "tiny.derive_preset")
    assert plan.step("tiny.prune_50pct_stress.evaluate").runs == (1, 2)
    assert plan.step("tiny.nan_injection.evaluate").runs == (1,)
    assert plan.step("tiny.nan_injection.create").edit is None
    assert plan.step("compile_verdict").needs == ()
    assert plan.step("verify_pack").needs == ("build_pack",)


def test_edits_are_resolved_in_the_plan(make_settings: MakeSettings, home: Home) -> None:
    plan = build_plan(make_settings(), home, NOW).plan
    clean, stress = (plan.step(f"tiny.{name}.create").edit for name in ("quant_clean", "prune_50pct_stress"))
    assert clean is not None and (clean.bits, clean.group_size, clean.scope) == (8, 0, "ffn")
    assert stress is not None and (stress.sparsity, stress.scope, stress.edit_dir_name) == (
        0.5,
        "all",
        "prune_50pct_stress",
    )


def test_needs_come_before_those_who_need_them(make_settings: MakeSettings, make_model: MakeModel, home: Home) -> None:
    plan = build_plan(make_settings(models=[str(make_model("a", 64)), str(make_model("b"))]), home, NOW).plan
    seen: set[str] = set()
    for step in plan.steps:
        assert set(step.needs) <= seen
        seen.add(step.id)
    assert len(seen) == len(plan.steps) == 2 * (3 + 2 * SCENARIOS) + 3


@pytest.mark.parametrize(("order", "names"), [("small_first", ["b", "c", "a"]), ("large_first", ["a", "b", "c"])])
def test_order_of_models(
    order: str, names: list[str], make_settings: MakeSettings, make_model: MakeModel, home: Home
) -> None:
    models = [str(make_model(name, rows)) for name, rows in (("a", 4096), ("c", 64), ("b", 64))]
    plan = build_plan(make_settings(models=models, order=order), home, NOW).plan
    assert [model.name for model in plan.models] == names


def test_counts_follow_the_settings(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    base = {"models": make_settings().models}
    plan = build_plan(make_settings(**base, run_error_injection=False, clean_edit_runs=1), home, NOW).plan
    assert {scenario.category.value for scenario in plan.scenarios} == {"clean", "stress"}
    assert plan.step("tiny.prune_clean.evaluate").runs == (1,)
    only = build_plan(make_settings(**base, scenarios="nan_injection", tuned_edit_params_file=None), home, NOW).plan
    assert [scenario.id for scenario in only.scenarios] == ["nan_injection"]


def test_time_limits_by_reference_name(make_settings: MakeSettings, home: Home) -> None:
    limits = {"CREATE_ERROR": 5, "CREATE_EDIT": 6, "CALIBRATION_RUN": 0}
    singly = make_settings(task_timeouts=limits, task_timeout_default=9, use_batch_edits=False)
    plan = build_plan(singly, home, NOW).plan
    shown = {
        name: plan.step(name).timeout_s
        for name in ("tiny.nan_injection.create", "tiny.prune_clean.create", "tiny.calibrate", "build_pack")
    }
    assert list(shown.values()) == [5, 6, None, 9]
    limits = {"CREATE_EDITS_BATCH": 7, **limits}
    together = make_settings(models=singly.models, task_timeouts=limits, use_batch_edits=True)
    assert build_plan(together, home, NOW).plan.step("tiny.prune_clean.create").timeout_s == 7


@pytest.mark.parametrize(
    ("model", "weights_gb", "edits", "use", "shared"),
    [
        ("a/small", 1, 8, None, True),
        ("a/small", 1, 1, None, False),
        ("a/Big-70B", 1, 8, None, False),
        ("a/Qwen-MoE", 1, 8, None, False),
        ("a/plain", 170, 8, None, False),
        ("a/Big-70B", 170, 8, True, True),
        ("a/small", 1, 8, False, False),
    ],
)
def test_which_models_edits_share_a_pass(
    make_settings: MakeSettings, model: str, weights_gb: float, edits: int, use: bool | None, shared: bool
) -> None:
    settings = make_settings(use_batch_edits=use)
    assert edits_share_a_pass(model, weights_gb, 1000, edits, settings) is shared
    assert edits_share_a_pass(model, weights_gb, 1000, edits, settings, devices=1) is (use is True)


def test_with_a_core_for_each_edit_they_are_made_side_by_side(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings()

    def shared() -> bool:
        return build_plan(settings, home, NOW).plan.models[0].batch_edits

    assert shared()
    for slots, together in ((2, True), (64, False)):
        write_json(home.pools, {"cpu": slots, "gpu": 0})
        assert shared() is together


def test_variants_in_full_need_more_room(make_settings: MakeSettings, home: Home) -> None:
    models = make_settings().models

    def reserved(storage: str) -> float:
        (space,) = build_plan(make_settings(models=models, variant_storage=storage), home, NOW).space
        return space.edits_gb + space.errors_gb

    assert reserved("full") > reserved("delta")


def test_a_budget_below_one_step_is_refused(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings()
    size = build_plan(settings, home, NOW).space[0].edits_gb
    build_plan(settings.model_copy(update={"variant_budget_gb": size}), home, NOW)
    with pytest.raises(BadInput, match=r"PACK_VARIANT_BUDGET_GB=.*tiny may take"):
        build_plan(settings.model_copy(update={"variant_budget_gb": size / 2}), home, NOW)
    with pytest.raises(BadInput, match="contradict"):
        build_plan(settings.model_copy(update={"variant_budget_gb": 1.0, "keep_variants": True}), home, NOW)


def test_devices_decide_the_lane(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings()
    assert build_plan(settings, home, NOW, Devices(0)).plan.models[0].lane == "cpu_s"
    plan = build_plan(settings, home, NOW, Devices(2, 80)).plan
    assert (plan.models[0].lane, plan.models[0].devices) == ("gpu1_s", 1)
    assert {step.lane for step in plan.steps if step.model} == {"gpu1_s"}


def test_facts_of_a_local_model(make_settings: MakeSettings, make_model: MakeModel, home: Home) -> None:
    directory = make_model("two", rows=1024, shards=2)
    settings = make_settings(models=[str(directory)])
    draft = build_plan(settings, home, NOW)
    model = draft.plan.models[0]
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert model.weights_gb == round(size / 1e9, 3) and model.source.path == str(directory)
    largest = 1024 * 4 * 4  # five of the twelve injections store one tensor, six up to everything, one nothing
    edits = sum(scenario.category != "error_injection" for scenario in draft.plan.scenarios)
    space = draft.space[0]
    assert space.errors_gb == pytest.approx(size / 1e9)  # one at a time
    assert space.edits_gb == pytest.approx((edits if model.batch_edits else 1) * size / 1e9)
    assert space.all_gb == pytest.approx((edits * size + 5 * largest + 6 * size) / 1e9)
    assert draft.checkpoints == (directory,)
    before = model.source.revision
    (directory / "config.json").write_text(json.dumps({"vocab_size": 33}))
    assert build_plan(settings, home, NOW).plan.models[0].source.revision != before


def test_same_input_same_plan(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings()
    assert build_plan(settings, home, NOW) == build_plan(settings, home, NOW)


# --- hub models ------------------------------------------------------------------------------------------------------
def pin(home: Home, model: str, **entry: Any) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    home.model_revisions.write_text(json.dumps({"models": {model: entry}}))


def test_hub_model_in_the_cache(make_settings: MakeSettings, make_model: MakeModel, home: Home) -> None:
    pin(home, "org/Model-1", revision=COMMIT, gated=False)
    snapshot = home.hf / "hub" / "models--org--Model-1" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    make_model("cached").rename(snapshot)
    draft = build_plan(make_settings(models=["org/Model-1"]), home, NOW)
    model = draft.plan.models[0]
    assert (model.source.kind, model.source.revision, model.label) == ("hub", COMMIT, "Model-1")
    assert draft.documents["model_revisions.json"]["models"]["org/Model-1"]["revision"] == COMMIT


def test_hub_models_that_cannot_be_used(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings(models=["org/m"])
    with pytest.raises(BadInput, match=r"without a pinned revision .*: org/m"):
        build_plan(settings, home, NOW)
    for moving in ("../..", "main", COMMIT[:12]):
        pin(home, "org/m", revision=moving)
        with pytest.raises(BadInput, match="without a pinned revision"):
            build_plan(settings, home, NOW)
    pin(home, "org/m", revision=COMMIT)
    with pytest.raises(BadInput, match="not in the cache"):
        build_plan(settings, home, NOW)
    pin(home, "org/m", revision=COMMIT, gated=True)
    with pytest.raises(BadInput, match="gated"):
        build_plan(settings, home, NOW)
    with pytest.raises(MissingFile, match="pins"):
        build_plan(make_settings(models=["org/m"], model_revisions_file="/no/pins.json"), home, NOW)


# --- state/ ----------------------------------------------------------------------------------------------------------
def test_state_files(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    settings = make_settings()
    plan = make_plan(run, settings, home)
    loaded = load_plan(run)
    assert (loaded.to_json(), loaded.digest()) == (plan.to_json(), plan.digest())
    assert Settings.parse(run.settings.read_bytes()) == settings
    assert plan.settings_digest == settings.digest()
    assert Manifest.model_validate(read_json(run.scenarios)).scenarios == plan.scenarios
    assert Policy.parse(run.policy.read_bytes()).profile == "small"
    assert read_json(run.source_repo) == REPO
    assert read_json(run.tuned_edit_params)["defaults"]["quant_rtn"]["bits"] == 8
    pins = read_json(run.model_revisions)
    assert pins["model_list"] == ["tiny"]
    assert pins["models"]["tiny"]["revision"] == plan.models[0].source.revision
    assert sorted(path.name for path in run.root.iterdir()) == ["analysis", "state"]


def test_a_killed_plan_is_made_again(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    settings = make_settings()
    make_plan(run, settings, home)
    run.plan.unlink()
    assert make_plan(run, settings, home).steps


# --- resume ----------------------------------------------------------------------------------------------------------
def test_resume_keeps_the_plan(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    settings = make_settings(seq_len=64)
    first = make_plan(run, settings, home)
    before = run.plan.read_bytes()
    for again in (
        make_plan(run, Settings(resume=str(run.root)), home, given={"resume"}),
        make_plan(run, settings, home, given={"seq_len"}),
    ):
        assert (again.to_json(), again.digest()) == (first.to_json(), first.digest())
    assert run.plan.read_bytes() == before


def test_resume_refuses_what_contradicts(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    settings = make_settings(seq_len=64)
    make_plan(run, settings, home)
    with pytest.raises(BadInput, match="seq_len=64; 128"):
        make_plan(run, settings.model_copy(update={"seq_len": 128}), home, given={"seq_len"})
    with pytest.raises(BadInput, match="RESUME_MODE"):
        make_plan(run, settings.model_copy(update={"resume_mode": False}), home)


def test_resume_of_nothing(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    with pytest.raises(BadInput, match="no plan to resume"):
        make_plan(run, make_settings(resume=str(run.root)), home)
    assert not run.root.exists()


def test_resume_refuses_changed_settings(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    settings = make_settings()
    make_plan(run, settings, home)
    run.settings.write_text(json.dumps({**settings.to_json(), "seq_len": 99}))
    with pytest.raises(BadInput, match="changed after planning"):
        make_plan(run, settings, home)


# --- refused before anything is written ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"suite": "nope"}, "unknown suite 'nope'"),
        ({"scenarios": "quant_3bit"}, "unknown scenario 'quant_3bit'"),
        ({"models": ["/no/such/model"]}, "/no/such/model"),
        ({"dataset": "synthetic"}, "INVARLOCK_DATASET=synthetic"),
        ({"guards_order": "invariants,spectral,oracle"}, "PACK_GUARDS_ORDER=oracle"),
        ({"hf_trust_remote_code": True}, "INVARLOCK_HF_TRUST_REMOTE_CODE=True"),
        ({"calibration_preset_file": "/p.yaml"}, "calibration preset /p.yaml does not exist"),
        ({"drift_calibration_runs": 0}, "DRIFT_CALIBRATION_RUNS=0"),
        ({"tuned_edit_params_file": "/no/tuned.json"}, "/no/tuned.json"),
        ({"min_free_disk_gb": 1e9}, "no disk space"),
    ],
)
def test_bad_input(params: dict[str, Any], said: str, make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    settings = make_settings(**params)
    with pytest.raises(BadInput) as caught:
        make_plan(run, settings, home)
    assert said in caught.value.what and caught.value.mend
    assert not run.root.exists()


def test_what_cannot_be_made_is_named(make_settings: MakeSettings, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported, "SUPPORTED_EDITS", frozenset({"quant_rtn"}))
    monkeypatch.setattr(supported, "SUPPORTED_FAULTS", frozenset({"nan_injection"}))
    with pytest.raises(BadInput, match=r"svd_rank32_stress \(lowrank_svd\)") as caught:
        build_plan(make_settings(suite="subset"), home, NOW)
    assert "rank_collapse (rank_collapse)" in caught.value.what
    assert "nan_injection" not in caught.value.what and "quant_rtn" not in caught.value.what


def test_wrong_edit_spec(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    value = json.loads((Path(__file__).parents[2] / "include/evpack/catalog/data/scenarios_core.json").read_text())
    value["scenarios"][2]["generation"]["edit_spec"] = "magnitude_prune:1.5:all"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(value))
    with pytest.raises(BadInput, match="invalid_prune_sparsity"):
        build_plan(make_settings(scenarios=str(path)), home, NOW)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lowrank_svd:4:ffn@layer=2", r"mine.*tiny.*names layer 2, but the model's blocks are 0 to 1"),
        ("quant_rtn:4:all@layer=0,9999", "names layer 9999"),
        ("quant_rtn:4:all@layers=0", "covers no layer"),
        ("lowrank_svd:64:ffn", "rank 64, but no matrix of the model has more than 64"),
        ("lowrank_svd:63:ffn@layer=1", None),
        ("quant_rtn:4:all@layers=9", None),
    ],
)
@pytest.mark.parametrize("names", [("num_hidden_layers", "hidden_size"), ("n_layer", "n_embd")])
def test_edits_that_no_tensor_of_the_model_fits(
    spec: str, said: str | None, names: tuple[str, str], make_settings: MakeSettings, make_model: MakeModel,
    home: Home, tmp_path: Path,
) -> None:  # fmt: skip
    value = json.loads(shipped("scenarios_core.json"))
    stress = next(one for one in value["scenarios"] if one["category"] == "stress")
    value["scenarios"] = [stress | {"id": "mine", "generation": stress["generation"] | {"edit_spec": spec}}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(value))
    model = make_model(config={"vocab_size": 32, names[0]: 2, names[1]: 64})
    settings = make_settings(models=[str(model)], scenarios=str(path))
    if said is None:
        assert build_plan(settings, home, NOW).plan.steps
    else:
        with pytest.raises(BadInput, match=said):
            build_plan(settings, home, NOW)


def test_missing_tuned_parameters_are_listed(
    make_settings: MakeSettings, make_model: MakeModel, home: Home, tmp_path: Path
) -> None:
    tuned = tmp_path / "own.json"
    tuned.write_text(json.dumps({"models": {"tiny": {"quant_rtn": {"status": "skipped", "reason": "x"}}}}))
    settings = make_settings(tuned_edit_params_file=str(tuned))
    with pytest.raises(BadInput, match=r"tiny:quant_rtn:skipped, .*tiny:magnitude_prune:missing"):
        build_plan(settings, home, NOW)
    assert build_plan(settings.model_copy(update={"clean_edit_runs": 0}), home, NOW).plan.steps


@pytest.mark.parametrize("text", [None, json.dumps({"models": {"tiny": {"quant_rtn": {"status": "failed"}}}})])
def test_calibration_asks_for_no_tuned_parameters(
    text: str | None, make_settings: MakeSettings, make_model: MakeModel, home: Home, tmp_path: Path
) -> None:
    tuned = tmp_path / "own.json"
    if text is not None:
        tuned.write_text(text)
    settings = make_settings(tuned_edit_params_file=str(tuned), suite_mode="calibrate-only")
    draft = build_plan(settings, home, NOW)
    assert draft.documents["settings.json"]["suite_mode"] == "full"  # type: ignore[index, call-overload]
    found = {edit.edit_type: edit.status for edit in draft.plan.clean_edits("tiny").values()}
    assert found["quant_rtn"] == ("missing" if text is None else "failed") and found["magnitude_prune"] == "missing"
    tuned.write_text("no json")
    with pytest.raises(BadInput, match=r"own\.json"):
        build_plan(settings, home, NOW)


def test_models_that_are_no_checkpoints(
    make_settings: MakeSettings, make_model: MakeModel, home: Home, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        str(empty): "config.json",
        str(make_model("novocab", config={})): "vocab_size",
        str(make_model("noshards", shards=0)): "safetensors",
    }
    for path, said in cases.items():
        with pytest.raises(BadInput, match=said):
            build_plan(make_settings(models=[path]), home, NOW)


def test_a_truncated_shard_is_left_to_the_models_own_steps(
    make_settings: MakeSettings, make_model: MakeModel, home: Home
) -> None:
    directory = make_model("cut")
    shard = directory / "model-0.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])
    assert build_plan(make_settings(models=[str(directory)]), home, NOW).plan.models[0].name == "cut"


def test_models_of_one_name(make_settings: MakeSettings, make_model: MakeModel, home: Home) -> None:
    models = [str(make_model("m.1")), str(make_model("M1"))]
    with pytest.raises(BadInput, match="both be stored as 'm1'"):
        build_plan(make_settings(models=models), home, NOW)


def test_a_model_named_like_a_state_directory(make_settings: MakeSettings, make_model: MakeModel, home: Home) -> None:
    with pytest.raises(BadInput, match="reserved"):
        build_plan(make_settings(models=[str(make_model("state"))]), home, NOW)


def test_directory_that_holds_something_else(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    run.root.mkdir()
    (run.root / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match=r"thesis\.tex"):
        make_plan(run, make_settings(), home)
    assert [path.name for path in run.root.iterdir()] == ["thesis.tex"]


def test_directory_that_cannot_be_made(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"):
        make_plan(RunDir(tmp_path / "file" / "run"), make_settings(), home)


def test_text_is_checked_before_anything_is_written(make_settings: MakeSettings, run: RunDir, home: Home) -> None:
    def refuse(settings: Settings, checkpoints: Any) -> None:
        assert [path.name for path in checkpoints] == ["tiny"]
        raise BadInput("too short")

    with pytest.raises(BadInput, match="too short"):
        make_plan(run, make_settings(), home, check_source=refuse)
    assert not run.root.exists()


def test_large_campaigns_are_planned_whole(make_settings: MakeSettings, make_model: MakeModel, home: Home) -> None:
    models = [str(make_model(f"m{index}")) for index in range(64)]
    plan = build_plan(make_settings(models=models), home, NOW).plan
    assert len(plan.steps_of(StepType.EVALUATE)) == 64 * SCENARIOS

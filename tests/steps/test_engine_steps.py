"""From baseline to report on a tiny random model: what is published, kept, refused and blamed."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.scenarios import EditGeneration, ErrorGeneration, Scenario
from evpack.checkpoint.profile import open_baseline
from evpack.checkpoint.writer import VariantWriter
from evpack.data.windows import WindowSet
from evpack.errors import BadInput, CheckpointError, DataError, EvidenceError, MissingFile
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.report import check_report, recompute
from evpack.files import read_json, sha256_file, write_json
from evpack.guards import invariants
from evpack.home import Home
from evpack.plan.model import ModelSource, StepPlan, StepType
from evpack.plan.sources import content_digest
from evpack.presets.derive import read_preset
from evpack.rundir import ModelDir, RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.calibrate import calibrate
from evpack.steps.derive_preset import derive_preset
from evpack.steps.evaluate import evaluate
from evpack.steps.setup_baseline import setup_baseline
from evpack.steps.subject import measured_noop_shift
from tests.plans import campaign_plan, model_plan
from tests.tiny import WORDS, save_tiny_llama

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
_COMMON = {"failure_class": "test", "intent": "test"}
CLEAN = Scenario(
    id="clean",
    category="clean",
    strictness="must_pass",
    generation=EditGeneration(kind="edit", edit_spec="magnitude_prune:clean:ffn", version="clean"),
    **_COMMON,
)
FAULT = Scenario(
    id="fault",
    category="error_injection",
    strictness="must_detect",
    generation=ErrorGeneration(kind="error", error_type="nan_injection"),
    **_COMMON,
)
CREATE_CLEAN = StepPlan(
    id="tiny.clean.create",
    type=StepType.CREATE,
    model="tiny",
    scenario=CLEAN.id,
    edit=ResolvedEdit(spec="magnitude_prune:clean:ffn", edit_type="magnitude_prune", scope="ffn", sparsity=0.1),
)
SETTINGS = {
    "dataset": "text",
    "preview_windows": 4,
    "final_windows": 4,
    "seq_len": 8,
    "drift_calibration_runs": 3,
    "clean_edit_runs": 2,
    "stress_edit_runs": 1,
    "guards_order": ("invariants",),
    "profile": "small",
}


@dataclass
class Campaign:
    """A hand-made campaign of one model in `root`."""

    root: Path
    source: Path
    text: Path

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / "run")

    @property
    def model(self) -> ModelDir:
        return self.run.model("tiny")

    def context(
        self,
        type_: StepType,
        scenario: Scenario | None = None,
        *,
        batch: int | None = None,
        source: ModelSource | None = None,
        **settings: Any,
    ) -> StepContext:
        frozen = Settings.model_validate(SETTINGS | {"text_path": str(self.text)} | settings)
        pin = f"sha256:{content_digest(self.source)}"
        step = StepPlan(
            id=f"tiny.{type_.value}",
            type=type_,
            model="tiny",
            scenario=scenario.id if scenario else None,
            runs=(1,) if scenario is FAULT else (1, 2),
        )
        source = source or ModelSource(kind="local", path=str(self.source), revision=pin)
        model = model_plan("tiny", id="org/tiny", source=source, weights_gb=0.001, batch=8)
        plan = campaign_plan([CREATE_CLEAN, step], frozen, models=(model,), scenarios=(CLEAN, FAULT))
        write_json(self.run.policy, resolve_policy("balanced", "small").to_json())
        return StepContext(self.run, plan, frozen, step, Home(self.root / "home"), 1, batch)

    def variant(
        self,
        scenario: Scenario,
        changes: Mapping[str, Any],
        *,
        declared: bool = False,
        removed: tuple[str, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a variant: `changes` maps a tensor to what makes its replacement."""
        directory = self.model.variant(scenario.id)
        directory.mkdir(parents=True)
        baseline = open_baseline(self.model)
        with VariantWriter(directory, baseline, list(changes)) as writer:
            for name, change in changes.items():
                before = baseline.read(name)
                writer.put(name, before, change(before.clone()))
            writer.finish(
                scenario=scenario.id,
                kind="edit",
                declaration={"tensors": sorted(changes)} if declared else None,
                metadata={"edit_type": "test"},
                removed=removed,
                config_overrides=config,
            )

    def evaluate(self, scenario: Scenario, **options: Any) -> list[dict[str, Any]]:
        """Run the step; the reports, each held against schema and records."""
        policy = Policy.parse(self.run.policy.read_bytes())
        reports = []
        for directory in evaluate(self.context(StepType.EVALUATE, scenario, **options)):
            report = check_report((directory / "evaluation.report.json").read_bytes())
            subject = (directory / report["records"]["subject"]["path"]).read_bytes()
            baseline = (self.model.root / report["records"]["baseline"]["path"]).read_bytes()
            assert recompute(report, subject, baseline, policy, measured_noop_shift(self.model)) == []
            manifest = read_json(directory / "runtime.manifest.json")
            assert manifest["report"]["sha256"] == sha256_file(directory / "evaluation.report.json")
            reports.append(report)
        return reports


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a word-level tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("source") / "tiny", tied=False)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(3)  # noqa: S311
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(f"w{draw.randrange(WORDS)}" for _ in range(40 * 8)))
    return file


@pytest.fixture
def fresh(tmp_path: Path, source: Path, text: Path) -> Campaign:
    return Campaign(tmp_path, source, text)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, source: Path, text: Path) -> Path:
    campaign = Campaign(tmp_path_factory.mktemp("prepared"), source, text)
    setup_baseline(campaign.context(StepType.SETUP_BASELINE))
    calibrate(campaign.context(StepType.CALIBRATE))
    derive_preset(campaign.context(StepType.DERIVE_PRESET))
    return campaign.root


@pytest.fixture
def ready(prepared: Path, tmp_path: Path, source: Path, text: Path) -> Campaign:
    """A campaign whose baseline is set up, calibrated and has its preset."""
    shutil.copytree(prepared, tmp_path / "campaign", symlinks=True)
    return Campaign(tmp_path / "campaign", source, text)


# --- setup_baseline -------------------------------------------------------------------------------
def test_setup_links_the_checkpoint_and_cuts_windows(ready: Campaign, source: Path) -> None:
    weights = ready.model.baseline / "model.safetensors"
    assert weights.is_symlink() and weights.resolve() == source / "model.safetensors"
    windows = WindowSet.load(ready.model.windows)
    assert (windows.tokens.shape, windows.provider, len(windows.runs)) == ((40, 8), "text", 3)
    assert read_json(ready.model.profile)["model_id"] == "org/tiny"


def test_with_a_stride_windows_overlap_and_score_their_last_tokens(fresh: Campaign) -> None:
    for type_, work in ((StepType.SETUP_BASELINE, setup_baseline), (StepType.CALIBRATE, calibrate)):
        work(fresh.context(type_, stride=2))
    derive_preset(fresh.context(StepType.DERIVE_PRESET, stride=2))
    windows = WindowSet.load(fresh.model.windows)
    assert (windows.stride, windows.tokens.shape) == (2, (157, 8))
    assert read_preset(fresh.run.preset("tiny"))["dataset"]["stride"] == 2
    fresh.variant(CLEAN, {DOWN: lambda tensor: tensor * 1.02}, declared=True)
    for report in fresh.evaluate(CLEAN, stride=2):
        assert (report["dataset"]["stride"], report["dataset"]["tokens_available"]) == (2, 314)
        records = WindowRecords.parse(
            (fresh.model.report("clean", "clean", 1) / "records.json").read_bytes(), "records"
        )
        assert {window.predicted_tokens for window in records.windows} == {2}


def test_setup_copies_when_asked_and_replaces_what_was_left_over(fresh: Campaign) -> None:
    fresh.model.baseline.mkdir(parents=True)
    (fresh.model.baseline / "half").write_text("left by a killed attempt")
    paths = setup_baseline(fresh.context(StepType.SETUP_BASELINE, baseline_storage_mode="snapshot_copy"))
    assert paths == [fresh.model.baseline, fresh.model.windows, fresh.model.profile]
    assert not (fresh.model.baseline / "model.safetensors").is_symlink()
    assert [path.name for path in fresh.run.archive.rglob("half")] == ["half"]


def test_setup_takes_neither_pickles_nor_code(fresh: Campaign, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    for name in ("pytorch_model.bin", "modeling.py"):
        (copy / name).write_text("x")
    setup_baseline(Campaign(tmp_path, copy, fresh.text).context(StepType.SETUP_BASELINE))
    assert {p.suffix for p in fresh.model.baseline.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (ModelSource(kind="local", path="/nowhere/at/all"), MissingFile, "/nowhere/at/all does not exist"),
        (ModelSource(kind="hub", revision="a" * 40), BadInput, "revision a+ is not in the cache"),
    ],
)
def test_setup_names_a_source_that_is_not_there(
    fresh: Campaign, given: ModelSource, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        setup_baseline(fresh.context(StepType.SETUP_BASELINE, source=given))
    assert not fresh.model.root.exists()


def test_setup_refuses_a_checkpoint_that_changed_since_the_plan(fresh: Campaign, source: Path) -> None:
    other = ModelSource(kind="local", path=str(source), revision=f"sha256:{'0' * 64}")
    with pytest.raises(CheckpointError, match="has changed since the campaign was planned"):
        setup_baseline(fresh.context(StepType.SETUP_BASELINE, source=other))


def test_setup_refuses_a_directory_without_weights(fresh: Campaign, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match=r"holds no .*safetensors"):
        setup_baseline(Campaign(tmp_path, empty, fresh.text).context(StepType.SETUP_BASELINE))


def test_setup_names_a_truncated_shard_and_a_tensor_that_is_not_finite(fresh: Campaign, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(fresh.source, copy)
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    tensors[DOWN][1, 2] = math.inf
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=f"{DOWN}' holds 1 NaN or infinite"):
        setup_baseline(Campaign(tmp_path, copy, fresh.text).context(StepType.SETUP_BASELINE))
    assert not fresh.model.profile.exists()
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        setup_baseline(Campaign(tmp_path, copy, fresh.text).context(StepType.SETUP_BASELINE))


def test_setup_says_how_many_windows_are_missing(fresh: Campaign) -> None:
    with pytest.raises(DataError, match=r"40 windows .*60 needed .*20 missing"):
        setup_baseline(fresh.context(StepType.SETUP_BASELINE, preview_windows=16))


# --- calibrate, derive_preset ---------------------------------------------------------------------
def records_of(directory: Path) -> WindowRecords:
    file = directory / "records.json"
    return WindowRecords.parse(file.read_bytes(), str(file))


def test_calibration_losses_equal_a_plain_forward_loop(ready: Campaign) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ready.source, dtype=torch.float32).eval()
    windows = WindowSet.load(ready.model.windows)
    for run in windows.runs:
        records = records_of(ready.model.calibration / f"run_{run.run}")
        assert [(w.id, w.arm) for w in records.windows] == run.in_order()
        assert records.seed == 41 + run.run
        for window in records.windows:
            ids = torch.from_numpy(windows.tokens[window.id]).long()[None]
            with torch.no_grad():
                mean = model(input_ids=ids, labels=ids).loss.item()
            assert window.predicted_tokens == 7
            assert window.nll_sum == pytest.approx(7 * mean, rel=1e-5)


def test_calibration_keeps_finished_runs_and_redoes_what_does_not_fit(ready: Campaign) -> None:
    one, two, three = (ready.model.calibration / f"run_{k}" for k in (1, 2, 3))
    before = one.stat().st_ino
    shutil.rmtree(two)
    other = read_json(three / "records.json")
    other["checkpoint_digest"] = "0" * 64
    write_json(three / "records.json", other)
    noop = ready.model.calibration / "noop_records.json"
    assert calibrate(ready.context(StepType.CALIBRATE)) == [one, two, three, noop]
    assert one.stat().st_ino == before
    assert records_of(two).run == 2
    assert records_of(three).checkpoint_digest == records_of(one).checkpoint_digest
    assert len(list(ready.run.archive.rglob("records.json"))) == 1


def test_every_scheduled_run_is_scored_also_beyond_the_calibration_runs(ready: Campaign) -> None:
    preset = ready.context(StepType.DERIVE_PRESET, drift_calibration_runs=2, clean_edit_runs=3)
    derive_preset(preset)
    statistics = read_json(ready.model.calibration / "calibration_stats.json")
    assert statistics["runs"] == [1, 2]
    assert (ready.model.calibration / "run_3" / "records.json").is_file()


def test_the_preset_has_the_effective_values_in_the_order_of_the_reference(ready: Campaign) -> None:
    import yaml

    preset = yaml.safe_load(ready.run.preset("tiny").read_text())
    assert list(preset) == ["_calibration_meta", "model", "dataset", "guards"]
    assert preset["model"] == {"id": "tiny/models/baseline"}
    assert preset["dataset"] == {
        "provider": "text",
        "split": None,
        "seq_len": 8,
        "stride": 8,
        "preview_n": 4,
        "final_n": 4,
        "seed": 42,
    }
    assert preset["guards"] == {"order": ["invariants"]}
    drifts = [
        read_json(ready.model.calibration / f"run_{k}" / "baseline_report.json")["primary_metric"]["drift"]
        for k in (1, 2, 3)
    ]
    assert preset["_calibration_meta"]["drift_mean"] == pytest.approx(sum(drifts) / 3)


def test_clean_edits_are_judged_by_the_variant_of_their_type(ready: Campaign) -> None:
    edit = ready.context(StepType.DERIVE_PRESET).plan.clean_edits("tiny")[CLEAN.id]
    variant = ready.run.preset("tiny", edit.edit_type)
    assert read_preset(variant)["_calibration_meta"]["edit_type"] == edit.edit_type
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    ready.evaluate(CLEAN)
    manifest = read_json(ready.model.report(CLEAN.id, CLEAN.category, 1) / "runtime.manifest.json")
    assert manifest["config"] == {
        "path": f"presets/{variant.name}",
        "sha256": sha256_file(variant),
        "source": "file",
    }


# --- evaluate -------------------------------------------------------------------------------------
def test_a_declared_edit_gets_a_report_that_follows_from_its_records(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    first, second = ready.evaluate(CLEAN)
    assert (first["meta"]["run"], second["meta"]["run"]) == (1, 2)
    assert first["primary_metric"]["ratio_vs_baseline"] == pytest.approx(1.0, abs=0.01)
    assert first["invariants"]["status"] == "pass"
    assert first["invariants"]["undeclared"] == []
    assert first["validation"]["invariants_pass"] is True
    assert first["records"]["baseline"]["path"] == "reports/calibration/run_1/records.json"
    assert first["edit_name"] == "clean"
    assert first["dataset"]["tokens_available"] == 320


@pytest.mark.parametrize("allowed", [False, True])
def test_the_runtime_manifest_says_whether_code_of_others_was_allowed(ready: Campaign, allowed: bool) -> None:
    ready.variant(FAULT, {DOWN: lambda t: t * 2})
    ready.evaluate(FAULT, allow_remote_code=allowed)
    manifest = read_json(ready.model.report("fault", "error_injection", 1) / "runtime.manifest.json")
    assert manifest["runtime"]["allow_remote_code"] is allowed


def test_a_tensor_that_no_window_reaches_gives_exactly_one(ready: Campaign) -> None:
    def unused_row(tensor: Any) -> Any:
        tensor[WORDS] += 1
        return tensor

    ready.variant(CLEAN, {EMBEDDING: unused_row}, declared=True)
    metric = ready.evaluate(CLEAN)[0]["primary_metric"]
    assert (metric["ratio_vs_baseline"], metric["display_ci"], metric["degenerate"]) == (1.0, [1.0, 1.0], True)


def nan(tensor: Any) -> Any:
    tensor[0, 0] = math.nan
    return tensor


def test_another_batch_scores_the_baseline_again_beside_the_report(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    for run, report in enumerate(ready.evaluate(CLEAN, batch=2), start=1):
        assert report["records"]["baseline"]["path"] == f"reports/clean/run_{run}/baseline_records.json"
        assert report["dataset"]["windows"]["stats"]["window_pairing_reason"] is None
        again = read_json(ready.model.report("clean", "clean", run) / "baseline_records.json")
        assert again["compute"]["batch"] == 2
    assert records_of(ready.model.calibration / "run_1").compute.batch == 8


def test_a_report_of_an_earlier_attempt_is_kept_only_when_it_fits(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    ready.evaluate(CLEAN)
    one, two = (ready.model.report("clean", "clean", k) for k in (1, 2))
    kept = one.stat().st_ino
    (two / "evaluation.report.json").write_text("{}")
    ready.evaluate(CLEAN)
    assert one.stat().st_ino == kept
    assert len(list(ready.run.archive.rglob("evaluation.report.json"))) == 1


def test_a_guard_that_breaks_or_does_not_exist_is_an_error_not_a_pass(
    ready: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("broken")

    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    derive_preset(ready.context(StepType.DERIVE_PRESET, guards_order=("invariants", "spectral")))
    monkeypatch.setattr(invariants, "validate", crash)
    report = ready.evaluate(CLEAN)[0]
    assert report["invariants"]["status"] == report["spectral"]["status"] == "error"
    assert report["validation"]["invariants_pass"] is report["validation"]["spectral_stable"] is False
    assert "ZeroDivisionError" in json.dumps(report["invariants"]["failures"])


def test_calibration_scores_a_no_op_once_and_reports_name_its_shift(ready: Campaign) -> None:
    file = ready.model.calibration / "noop_records.json"
    noop = WindowRecords.parse(file.read_bytes(), "noop")
    shift = measured_noop_shift(ready.model)
    assert (noop.run, noop.side) == (1, "subject") and 0 < abs(shift) < 0.01
    before = file.stat().st_mtime_ns
    calibrate(ready.context(StepType.CALIBRATE))
    assert file.stat().st_mtime_ns == before
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    for report in ready.evaluate(CLEAN):
        assert report["primary_metric"]["noop_shift"] == shift
        assert report["primary_metric"]["shift_band"] == max(0.002, abs(shift))
    file.unlink()
    with pytest.raises(EvidenceError, match="redo calibrate"):
        ready.evaluate(CLEAN)


def test_a_preset_of_other_windows_is_refused(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    preset = ready.run.preset("tiny", "magnitude_prune")
    preset.write_text(preset.read_text().replace("preview_n: 4", "preview_n: 5"))
    with pytest.raises(EvidenceError, match="redo derive_preset"):
        ready.evaluate(CLEAN)
    preset.write_text("[")
    with pytest.raises(EvidenceError, match="cannot be read"):
        ready.evaluate(CLEAN)

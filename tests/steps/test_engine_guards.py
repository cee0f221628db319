"""The whole chain of guards from calibrate to report: what is measured, kept, paired and said of a broken subject."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_engine_steps import CLEAN, DOWN, FAULT, Campaign, source, text  # noqa: F401 - fixtures

from evpack.catalog.policy import Leaf, resolve_policy
from evpack.catalog.scenarios import ErrorGeneration, ProbeDetector, Requirements, Scenario
from evpack.errors import EvidenceError, OutOfMemory
from evpack.evaluation.report import recompute
from evpack.files import read_json, sha256_file, write_json
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords
from evpack.plan.model import StepType
from evpack.steps import guarding
from evpack.steps.base import StepContext
from evpack.steps.calibrate import calibrate
from evpack.steps.derive_preset import derive_preset
from evpack.steps.evaluate import evaluate
from evpack.steps.setup_baseline import setup_baseline
from evpack.steps.subject import measured_noop_shift, measured_overhead

ORDER = ("invariants", "spectral", "rmt", "variance", "invariants")
PROBED = Scenario(
    id="fault",
    category="error_injection",
    failure_class="test",
    strictness="informational",
    generation=ErrorGeneration(kind="error", error_type="ve_mlp_scale_skew"),
    requirements=Requirements(
        detectors_any_of=tuple(ProbeDetector(type="probe", file=f) for f in ("rmt_probe.json", "ve_probe.json"))
    ),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, source: Path, text: Path) -> Path:  # noqa: F811
    campaign = Campaign(tmp_path_factory.mktemp("guarded"), source, text)
    setup_baseline(campaign.context(StepType.SETUP_BASELINE))
    calibrate(campaign.context(StepType.CALIBRATE, guards_order=ORDER))
    derive_preset(campaign.context(StepType.DERIVE_PRESET, guards_order=ORDER))
    return campaign.root


@pytest.fixture
def ready(guarded: Path, tmp_path: Path, source: Path, text: Path) -> Campaign:  # noqa: F811
    shutil.copytree(guarded, tmp_path / "campaign", symlinks=True)
    return Campaign(tmp_path / "campaign", source, text)


def test_calibration_keeps_the_baselines_figures_once_and_again_nothing(ready: Campaign) -> None:
    spectral = ready.model.calibration / "spectral_records.json"
    matrices = SpectralRecords.parse(spectral.read_bytes(), "x")
    assert DOWN in matrices.matrices and matrices.side == "baseline"
    for k in (1, 2, 3):
        file = ready.model.calibration / f"run_{k}" / "activation_records.json"
        records = ActivationRecords.parse(file.read_bytes(), "x")
        assert (records.run, len(records.windows), records.side) == (k, 8, "baseline")
    before = {path: path.stat().st_mtime_ns for path in ready.model.calibration.glob("run_*/*.json")}
    assert spectral in calibrate(ready.context(StepType.CALIBRATE, guards_order=ORDER))
    assert before == {path: path.stat().st_mtime_ns for path in ready.model.calibration.glob("run_*/*.json")}


def test_a_calibration_without_figures_is_done_again_when_a_guard_needs_them(ready: Campaign) -> None:
    file = ready.model.calibration / "run_2" / "activation_records.json"
    file.unlink()
    calibrate(ready.context(StepType.CALIBRATE, guards_order=ORDER))
    assert file.is_file()


def test_the_preset_names_thresholds_of_every_guard(ready: Campaign) -> None:
    import yaml

    guards = yaml.safe_load(ready.run.preset("tiny").read_bytes())["guards"]
    assert guards["order"] == list(ORDER)
    assert guards["spectral"]["max_caps"] == 5 and guards["rmt"]["epsilon"] > 0 and guards["variance"]["monitor_only"]


def test_a_small_change_passes_every_guard_and_its_figures_stand_beside_the_report(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.002}, declared=True)
    for report in ready.evaluate(CLEAN):
        directory = ready.model.report("clean", "clean", report["meta"]["run"])
        assert [report[name]["status"] for name in ("invariants", "spectral", "rmt", "variance")] == ["pass"] * 4
        assert report["validation"]["spectral_stable"] is report["validation"]["rmt_stable"] is True
        assert 0 < report["rmt"]["rms_log_ratio"] < 0.01
        for name in ("spectral", "rmt", "variance"):
            subject, baseline = (report[name]["records"][side] for side in ("subject", "baseline"))
            assert sha256_file(directory / subject["path"]) == subject["sha256"]
            assert sha256_file(ready.model.root / baseline["path"]) == baseline["sha256"]


def test_damage_is_found_by_the_guards_whose_business_it_is(ready: Campaign) -> None:
    ready.variant(FAULT, {DOWN: lambda t: t * 100})
    (report,) = ready.evaluate(FAULT)
    assert report["validation"]["invariants_pass"] is True
    assert report["validation"]["spectral_stable"] is report["validation"]["rmt_stable"] is False
    assert report["variance"]["status"] == "warn" and report["variance"]["enabled"] is False


def test_a_subject_of_nan_gets_its_report_with_every_flag_down(ready: Campaign) -> None:
    ready.variant(FAULT, {DOWN: lambda t: t.fill_(math.nan)})
    (report,) = ready.evaluate(FAULT)
    flags = report["validation"]
    assert not any(flags[name] for name in ("invariants_pass", "spectral_stable", "rmt_stable"))
    assert {failure["type"] for failure in report["rmt"]["failures"]} == {"edge_risk_lost"}


def test_a_subject_that_cannot_be_loaded_has_errors_not_passes(ready: Campaign) -> None:
    ready.variant(FAULT, {}, removed=(DOWN,))
    (report,) = ready.evaluate(FAULT)
    assert (report["spectral"]["status"], report["rmt"]["status"], report["variance"]["status"]) == (
        "fail",
        "error",
        "error",
    )
    assert report["validation"]["rmt_stable"] is False


def test_a_halved_batch_changes_neither_rows_nor_figures(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.3}, declared=True)
    whole = ready.evaluate(CLEAN)[0]
    shutil.rmtree(ready.model.report("clean", "clean", 1).parent)
    halved = ready.evaluate(CLEAN, batch=2)[0]
    assert halved["rmt"]["rms_log_ratio"] == pytest.approx(whole["rmt"]["rms_log_ratio"], rel=1e-3)
    assert halved["rmt"]["records"]["baseline"]["path"].endswith("run_1/baseline_activation_records.json")


def test_missing_figures_of_the_baseline_are_an_error_not_a_pass(ready: Campaign) -> None:
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.002}, declared=True)
    (ready.model.calibration / "spectral_records.json").unlink()
    report = ready.evaluate(CLEAN)[0]
    assert (report["spectral"]["status"], report["validation"]["spectral_stable"]) == ("error", False)


def test_a_guard_that_crashes_is_an_error_and_the_others_go_on(
    ready: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(guarding, "measure_subject", crash)
    monkeypatch.setattr("evpack.guards.hooks.edge_risk", crash)
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.002}, declared=True)
    report = ready.evaluate(CLEAN)[0]
    assert [report[name]["status"] for name in ("invariants", "spectral", "rmt")] == ["pass", "error", "error"]
    assert report["primary_metric"]["outcome"] == "accept"


def test_probes_stand_beside_the_report_of_a_scenario_that_asks_for_them(ready: Campaign) -> None:
    ready.variant(PROBED, {DOWN: lambda t: t * 50})
    context = ready.context(StepType.EVALUATE, FAULT)
    plan = context.plan.model_copy(update={"scenarios": (CLEAN, PROBED)})
    (directory,) = evaluate(type(context)(context.run, plan, context.settings, context.step, context.home))
    rmt, variance = (read_json(directory / name) for name in ("rmt_probe.json", "ve_probe.json"))
    assert (rmt["status"], rmt["triggered"], rmt["windows"]["count"]) == ("ok", True, 8)
    assert (variance["status"], variance["scales_proposed"]) == ("ok", True)
    assert variance["ab_test"]["windows_used"] == 8
    assert len(variance["ab_test"]["nll_sums_with_ve"]) == 8


def test_a_probe_that_cannot_run_says_so_and_is_not_triggered(ready: Campaign) -> None:
    ready.variant(PROBED, {DOWN: lambda t: t * 1.3}, removed=("model.layers.1.mlp.down_proj.weight",))
    context = ready.context(StepType.EVALUATE, FAULT)
    plan = context.plan.model_copy(update={"scenarios": (CLEAN, PROBED)})
    (directory,) = evaluate(type(context)(context.run, plan, context.settings, context.step, context.home))
    for name in ("rmt_probe.json", "ve_probe.json"):
        probe = read_json(directory / name)
        assert (probe["status"], probe["triggered"]) == ("error", False) and probe["error"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access was encountered"), MemoryError()])
def test_a_failing_accelerator_ends_the_step_wherever_it_shows(
    ready: Campaign, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from evpack.guards import chain, hooks
    from evpack.steps.subject import Bench

    def fail(*_: object, **__: object) -> None:
        raise error

    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    for place, name in ((chain, "spectral_block"), (chain, "rmt_block"), (hooks, "edge_risk"), (Bench, "load")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises((type(error), OutOfMemory)):
                evaluate(ready.context(StepType.EVALUATE, CLEAN))
    assert not ready.model.report("clean", "clean", 1).exists()


def test_where_the_policy_asks_the_baseline_is_scored_without_guards_too(ready: Campaign) -> None:
    policy = resolve_policy("balanced", "small")
    measured = {"guard_overhead.measured": Leaf(value=True, origin="test")}
    policy = policy.model_copy(update={"thresholds": policy.thresholds | measured})

    def asked(context: StepContext) -> StepContext:
        write_json(context.run.policy, policy.to_json())
        return context

    file = ready.model.calibration / "bare_records.json"
    ready.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    evaluation = asked(ready.context(StepType.EVALUATE, CLEAN, guards_order=ORDER))
    with pytest.raises(EvidenceError, match="redo calibrate"):
        evaluate(evaluation)
    assert file in calibrate(asked(ready.context(StepType.CALIBRATE, guards_order=ORDER)))
    before = file.stat().st_mtime_ns
    calibrate(asked(ready.context(StepType.CALIBRATE, guards_order=ORDER)))
    assert file.stat().st_mtime_ns == before
    for directory in evaluate(evaluation):
        report = read_json(directory / "evaluation.report.json")
        block = report["guard_overhead"]
        assert (block["overhead_ratio"], block["passed"]) == (1.0, True), "guards that listen change no bit"
        assert report["validation"]["guard_overhead_acceptable"] is True
        subject = (directory / "records.json").read_bytes()
        baseline = (ready.model.root / report["records"]["baseline"]["path"]).read_bytes()
        shift, found = measured_noop_shift(ready.model), measured_overhead(ready.model)
        assert recompute(report, subject, baseline, policy, shift, found) == []
        assert recompute(report, subject, baseline, policy, shift), "losses without guards are missing"

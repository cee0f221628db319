from __future__ import annotations

import json
import os
from importlib import resources

import pytest
from jsonschema import Draft202012Validator

from evpack.files import canonical_json
from evpack.home import Home
from evpack.plan.model import StepPlan, StepType
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.compile_verdict import compile_verdict_step, read_run_evidence
from evpack.verdict.evidence import ReportKey, expected_reports

NAMES = (
    "final_verdict.json",
    "category_summary.json",
    "guard_signal_summary.json",
    "guard_intervention_summary.json",
    "scenario_signal_summary.json",
)


def _validator(name) -> Draft202012Validator:
    path = resources.files("evpack.verdict") / "schemas" / name.replace(".json", ".schema.json")
    return Draft202012Validator(json.loads(path.read_text()))


@pytest.fixture
def everything(campaign, catalog):
    """Every kind of scenario on two models, with failures, gaps and signals."""
    guards = ("invariants", "spectral", "variance")
    made = campaign(*catalog.values(), models=("tiny", "other"), guards_order=guards).write_good()
    capped = {
        "status": "warn",
        "caps_applied": 3,
        "caps_applied_by_family": {"attn": 1, "ffn": 2},
        "caps_exceeded": False,
    }
    scaled = {"status": "pass", "enabled": True, "proposed_scales": {"layers.0.down_proj": 1.03}}
    made.write(ReportKey("tiny", "quant_clean", 2), ratio=1.4)
    made.write(ReportKey("other", "quant_clean", 1), guards={"spectral": capped})
    made.write(
        ReportKey("tiny", "quant_stress", 1),
        guards={"spectral": capped | {"caps_exceeded": True}, "variance": scaled},
    )
    made.write(ReportKey("tiny", "rmt_noise", 1), sidecars={"rmt_probe.json": {"status": "ok", "triggered": True}})
    made.write(ReportKey("other", "nan_injection", 1), ratio=None)
    del made.files[made.path("prune_stress", 2, "other")]
    made.files[made.path("fp8_stress", 1, "other")] = b"{"
    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_file_fits_its_schema(everything, campaign, name) -> None:
    for made in (everything, campaign().write_good(), campaign()):
        verdict = made.verdict()
        document = {"final_verdict.json": verdict.to_json(), **verdict.summaries}[name]
        assert list(_validator(name).iter_errors(json.loads(canonical_json(document)))) == []


def test_the_verdict_depends_on_its_arguments_only(everything) -> None:
    first, second = everything.verdict(), everything.verdict()
    assert canonical_json(first.to_json()) == canonical_json(second.to_json())
    assert canonical_json(dict(first.summaries)) == canonical_json(dict(second.summaries))
    everything.files = dict(reversed(everything.files.items()))
    assert canonical_json(everything.verdict().to_json()) == canonical_json(first.to_json())


def test_text_of_a_pass(campaign) -> None:
    assert campaign().write_good().verdict().text() == (
        "evpack evidence pack - FINAL VERDICT\n"
        "Verdict: PASS\n"
        "Scenarios manifest: state/scenarios.json\n"
        "Policy: tier balanced, profile small (unstable: evidence at most medium)\n"
        "\n"
        "COUNTS:\n"
        "  Clean: 1/1 PASS\n"
        "  Stress: 1/1 FAIL (expected to fail)\n"
        "  Catastrophic-required stress: 1/1 FAIL\n"
        "  Error injection detected: 1/1\n"
        "  Reports: 6/6 usable\n"
    )


def test_text_of_a_mixed_campaign_lists_gaps_then_failures(everything) -> None:
    text = everything.verdict().text()
    assert text.splitlines()[1] == "Verdict: FAIL"
    assert "  Informational stress signal: 3/4 (fraction 0.75, required 0.5; clean scenarios 0/2)\n" in text
    assert text.endswith(
        "\n\nMISSING (required):\n"
        "  other: stress: prune_stress\n"
        "\nFAILED REQUIREMENTS:\n"
        "  - scenario_coverage: other: usable evidence of every run is missing for prune_stress\n"
        "  - clean_all_pass: quant_clean: must pass and did not (1 run)\n"
        "  - error_injection_detected: nan_injection: must be detected and was not (1 run)\n"
    )


def test_category_summary_counts_cells(everything) -> None:
    groups = everything.verdict().summaries["category_summary.json"]["categories"]
    assert groups["clean"]["total"] == 2 and groups["clean"]["passed"] == 1
    assert groups["stress_required"] | {"by_model": 0} == {
        "total": 2,
        "passed": 0,
        "failed": 1,
        "detected": 1,
        "signal": 1,
        "missing": 1,
        "by_model": 0,
        "scenarios": ["prune_stress"],
    }
    assert groups["error_required"]["detected"] == 1
    assert groups["stress_informational"]["by_model"]["other"]["missing"] == 1


def test_guard_summaries_count_runs_and_show_the_clean_rate(everything) -> None:
    summaries = everything.verdict().summaries
    spectral = summaries["guard_signal_summary.json"]["guards"]["spectral"]
    assert (spectral["remediation_events"], spectral["hard_flips"]) == (2, 0)
    assert spectral["clean_rate"] == pytest.approx(1 / 6)
    assert spectral["scenarios"] == ["quant_clean", "quant_stress"]
    kinds = summaries["guard_signal_summary.json"]["signal_kinds"]
    assert kinds["remediation"] == {"runs": 2, "clean_rate": pytest.approx(1 / 6)}
    intervention = summaries["guard_intervention_summary.json"]
    spectral, variance = (dict(intervention[name]) for name in ("spectral", "variance"))
    assert len(spectral.pop("reports")) == 2 and len(variance.pop("reports")) == 1
    families = {"attn": 2, "ffn": 4}
    counted = {"runs": 2, "caps_applied": 6, "caps_by_family": families, "runs_caps_exceeded": 1, "max_caps": 5}
    assert spectral == counted
    proposed = {"report": "tiny/reports/quant_stress/run_1/evaluation.report.json"}
    assert variance == {"runs": 1, "proposed_scales": [proposed | {"scales": {"layers.0.down_proj": 1.03}}]}
    assert [probe["triggered"] for probe in intervention["probes"]] == [True]


def test_scenario_summary_shows_unknown_as_null(everything) -> None:
    cells = everything.verdict().summaries["scenario_signal_summary.json"]["cells"]
    cell = next(cell for cell in cells if (cell["model"], cell["scenario"]) == ("other", "prune_stress"))
    assert cell["rejected"] is None and cell["passed"] is False and cell["run_count"] == 2
    assert [run["problem"] for run in cell["runs"]] == [None, "no report"]
    nan = next(cell for cell in cells if (cell["model"], cell["scenario"]) == ("tiny", "nan_injection"))
    assert nan["primary_guard_signal"] and nan["detectors_hit"]


# --- the step -------------------------------------------------------------------------------------
@pytest.fixture
def context(campaign, tmp_path):
    def make(made) -> StepContext:
        for path, data in made.files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "policy.json").write_bytes(canonical_json(made.policy.to_json()))
        return StepContext(
            run=RunDir(tmp_path),
            plan=made.plan,
            settings=Settings(guards_order=made.guards_order),
            step=StepPlan(id="compile_verdict", type=StepType.COMPILE_VERDICT),
            home=Home(tmp_path / "home"),
        )

    return make


def test_the_step_publishes_six_files_and_can_be_done_again(campaign, context) -> None:
    ctx = context(campaign().write_good())
    outputs = compile_verdict_step(ctx)
    assert [path.name for path in outputs] == [*NAMES, "final_verdict.txt"]
    assert json.loads(ctx.run.final_verdict.read_bytes())["verdict"] == "PASS"
    (ctx.run.root / expected_reports(ctx.plan)[ReportKey("tiny", "quant_clean", 1)]).unlink()
    compile_verdict_step(ctx)
    assert json.loads(ctx.run.final_verdict.read_bytes())["verdict"] == "INCOMPLETE"
    assert "Verdict: INCOMPLETE" in (ctx.run.reports / "final_verdict.txt").read_text()
    assert sorted(path.name for path in ctx.run.reports.iterdir()) == sorted([*NAMES, "final_verdict.txt"])


def test_the_step_does_not_fail_without_any_evidence(campaign, context) -> None:
    ctx = context(campaign())
    compile_verdict_step(ctx)
    assert json.loads(ctx.run.final_verdict.read_bytes())["verdict"] == "INCOMPLETE"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_place_of_a_report_is_a_problem(campaign, context, make) -> None:
    ctx = context(campaign().write_good())
    key = ReportKey("tiny", "quant_clean", 1)
    path = ctx.run.root / expected_reports(ctx.plan)[key]
    path.unlink()
    make(path)
    assert "not JSON" in read_run_evidence(ctx.run, ctx.plan)[key].problem


def test_report_paths_are_those_of_the_run_directory(campaign, catalog) -> None:
    assert list(expected_reports(campaign(catalog["stress"], catalog["error"]).plan).values()) == [
        "tiny/reports/prune_stress/run_1/evaluation.report.json",
        "tiny/reports/prune_stress/run_2/evaluation.report.json",
        "tiny/reports/errors/nan_injection/evaluation.report.json",
    ]

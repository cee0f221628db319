from __future__ import annotations

import json

import pytest

from evpack.errors import CampaignExit
from evpack.verdict.evidence import ReportEvidence, ReportKey, read_evidence
from evpack.verdict.rules import compile_verdict


def requirements(verdict) -> list[tuple[str, str]]:
    return [(entry["requirement"], entry["verdict"]) for entry in verdict.document["failed_requirements"]]


def test_everything_as_expected_passes(campaign) -> None:
    verdict = campaign(models=("tiny", "other")).write_good().verdict()
    assert verdict.word == "PASS" and verdict.exit_code is CampaignExit.PASS
    counts = verdict.document["counts"]
    assert (counts["clean_pass"], counts["clean_total"]) == (2, 2)
    assert (counts["stress_fail"], counts["stress_total"]) == (2, 2)
    assert (counts["catastrophic_required_fail"], counts["catastrophic_required_present"]) == (2, 2)
    assert (counts["error_injection_detected"], counts["error_injection_total"]) == (2, 2)
    assert (counts["runs_usable"], counts["runs_expected"]) == (12, 12)
    assert verdict.document["missing"] == {"by_model": {}}
    assert verdict.document["policy"]["unstable"] is True


def test_no_evidence_at_all_is_incomplete(campaign) -> None:
    verdict = campaign().verdict()
    assert verdict.word == "INCOMPLETE" and verdict.exit_code is CampaignExit.INCOMPLETE
    assert requirements(verdict) == [("scenario_coverage", "INCOMPLETE")]
    assert verdict.document["missing"]["by_model"]["tiny"] == {
        "clean": ["quant_clean"],
        "error_injection": ["nan_injection"],
        "stress": ["prune_stress"],
    }


def test_a_plan_that_gates_nothing_is_incomplete(campaign, catalog) -> None:
    assert campaign(catalog["shown_error"]).write_good().verdict().word == "INCOMPLETE"


@pytest.mark.parametrize("scenario", ["quant_clean", "prune_stress", "nan_injection"])
def test_one_missing_report_is_incomplete_though_the_others_pass(campaign, scenario) -> None:
    made = campaign(models=("tiny", "other")).write_good()
    del made.files[made.path(scenario)]
    verdict = made.verdict()
    assert verdict.word == "INCOMPLETE"
    (entry,) = verdict.document["failed_requirements"]
    assert (entry["model"], entry["missing"][0]["scenario"]) == ("tiny", scenario)
    assert entry["missing"][0]["runs"] == [{"run": 1, "path": made.path(scenario), "problem": "no report"}]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema_version": "v1"}', b"\xff\xfe", b'{"a": NaN}'])
def test_an_unreadable_report_is_incomplete_and_named(campaign, data) -> None:
    made = campaign().write_good()
    made.files[made.path("quant_clean", 2)] = data
    verdict = made.verdict()
    assert verdict.word == "INCOMPLETE"
    problem = verdict.document["failed_requirements"][0]["missing"][0]["runs"][0]
    assert problem["run"] == 2 and "quant_clean/run_2" in problem["problem"]


def test_a_definite_failure_outweighs_what_is_missing(campaign) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", "quant_clean", 1), ratio=1.5)
    del made.files[made.path("prune_stress")]
    verdict = made.verdict()
    assert verdict.word == "FAIL" and verdict.exit_code is CampaignExit.FAIL
    assert requirements(verdict) == [("scenario_coverage", "INCOMPLETE"), ("clean_all_pass", "FAIL")]


@pytest.mark.parametrize("run", [1, 2, 3])
def test_every_run_of_a_clean_edit_counts(campaign, run) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", "quant_clean", run), ratio=1.5)
    verdict = made.verdict()
    assert verdict.word == "FAIL"
    (entry,) = verdict.document["failed_requirements"]
    assert entry["requirement"] == "clean_all_pass" and entry["scenario"] == "quant_clean"
    assert [failure["run"] for failure in entry["failures"]] == [run]
    assert entry["failures"][0]["reasons"] == ["primary_metric_fail"]
    assert entry["failures"][0]["path"] == f"tiny/reports/quant_clean/run_{run}/evaluation.report.json"


def test_an_inconclusive_clean_edit_fails_with_its_own_reason(campaign) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", "quant_clean", 1), spread=0.3)
    (entry,) = made.verdict().document["failed_requirements"]
    assert entry["failures"][0]["outcome"] == "inconclusive"
    assert "primary_metric_inconclusive" in entry["failures"][0]["reasons"]


@pytest.mark.parametrize(
    ("ratio", "spread", "reason"),
    [(1.0, 0.002, "accepted"), (1.10, 0.05, "inconclusive"), (0.5, 0.002, "inconclusive")],
)
def test_stress_must_be_rejected_in_every_run(campaign, ratio, spread, reason) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", "prune_stress", 2), ratio=ratio, spread=spread)
    verdict = made.verdict()
    assert verdict.word == "FAIL"
    failed = {entry["requirement"]: entry for entry in verdict.document["failed_requirements"]}
    assert failed["stress_required_fail"]["failures"][0]["reasons"] == [reason]
    assert ("stress_expected_detectors" in failed) == (reason == "accepted")


def test_a_degraded_metric_rejects(campaign) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", "prune_stress", 1), ratio=None)
    assert made.verdict().word == "PASS"


def test_rejection_without_an_expected_detector_fails(campaign, catalog, new_scenario) -> None:
    other = [{"type": "invariants_status", "allowed": ["fail"]}]
    made = campaign(catalog["clean"], new_scenario("svd_stress", "stress", "must_fail", other)).write_good()
    assert requirements(made.verdict()) == [("stress_expected_detectors", "FAIL")]


def test_stress_without_declared_detectors_needs_none(campaign, new_scenario) -> None:
    assert campaign(new_scenario("svd_stress", "stress", "must_fail")).write_good().verdict().word == "PASS"


def test_an_undetected_injection_fails_even_when_the_metric_is_rejected(campaign) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", "nan_injection", 1), ratio=3.0)
    verdict = made.verdict()
    assert requirements(verdict) == [("error_injection_detected", "FAIL")]
    assert verdict.document["failed_requirements"][0]["failures"][0]["reasons"] == ["no_detector_hit"]


def test_must_detect_without_detectors_is_never_detected(campaign, new_scenario) -> None:
    assert campaign(new_scenario("x", "error_injection", "must_detect")).write_good().verdict().word == "FAIL"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 7}, "seed_mismatch"),
        ({"windows_digest": "0"}, "windows_digest_mismatch"),
        (
            {"compute": {"device": "cuda", "dtype": "float32", "attention": "eager", "batch": 8}},
            "compute_mismatch:device",
        ),
    ],
)
@pytest.mark.parametrize("scenario", ["quant_clean", "prune_stress", "nan_injection"])
def test_records_that_do_not_pair_are_no_evidence(campaign, scenario, changes, named) -> None:
    made = campaign().write_good()
    made.write(ReportKey("tiny", scenario, 1), ratio=9.0, guards={"invariants": {"status": "fail"}}, **changes)
    verdict = made.verdict()
    assert verdict.word == "INCOMPLETE"
    assert named in verdict.document["failed_requirements"][0]["missing"][0]["runs"][0]["problem"]


def _swap(made, first, second) -> None:
    made.files[first], made.files[second] = made.files[second], made.files[first]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("quant_clean", 1, "tiny"), ("quant_clean", 2, "tiny")),
        (("quant_clean", 1, "tiny"), ("nan_injection", 1, "tiny")),
        (("quant_clean", 1, "tiny"), ("quant_clean", 1, "other")),
    ],
)
def test_a_report_filed_in_the_wrong_place_is_no_evidence(campaign, first, second) -> None:
    made = campaign(models=("tiny", "other")).write_good()
    _swap(made, made.path(*first), made.path(*second))
    verdict = made.verdict()
    assert verdict.word == "INCOMPLETE"
    assert (
        "a report of something else" in verdict.document["failed_requirements"][0]["missing"][0]["runs"][0]["problem"]
    )


def test_a_report_of_another_plan_or_policy_is_no_evidence(campaign) -> None:
    made = campaign().write_good()
    report = json.loads(made.files[made.path("quant_clean")])
    report["meta"]["plan_digest"] = "e" * 64
    made.files[made.path("quant_clean")] = json.dumps(report).encode()
    report = json.loads(made.files[made.path("prune_stress")])
    report["policy_digest"]["thresholds_hash"] = "e" * 64
    made.files[made.path("prune_stress")] = json.dumps(report).encode()
    verdict = made.verdict()
    assert verdict.word == "INCOMPLETE"
    problems = [gap["runs"][0]["problem"] for gap in verdict.document["failed_requirements"][0]["missing"]]
    assert any("thresholds" in text for text in problems) and any("plan_digest" in text for text in problems)


def test_a_model_without_any_step_is_a_gap_not_nothing(campaign, catalog) -> None:
    made = campaign(catalog["clean"], models=("tiny", "other")).write_good()
    steps = tuple(step for step in made.plan.steps if step.model == "tiny")
    made.plan = made.plan.model_copy(update={"steps": steps})
    made.write_good()
    verdict = made.verdict()
    assert verdict.word == "INCOMPLETE"
    assert verdict.document["missing"]["by_model"] == {"other": {"clean": ["quant_clean"]}}


def test_reports_nobody_asked_for_change_nothing_but_are_named(campaign) -> None:
    made = campaign().write_good()
    evidence = read_evidence(made.plan, made.files.get)
    evidence[ReportKey("tiny", "quant_clean", 4)] = ReportEvidence("tiny/reports/quant_clean/run_4/x", problem="bad")
    verdict = compile_verdict(
        made.plan, evidence, made.policy, guards_order=("invariants",), timestamp="2026-11-23T15:00:00Z"
    )
    assert verdict.word == "PASS"
    assert verdict.document["unexpected_reports"] == ["tiny/reports/quant_clean/run_4/x"]


# --- guards ---------------------------------------------------------------------------------------
def test_a_guard_of_the_order_without_a_flag_fails_clean_edits(campaign) -> None:
    made = campaign().write_good()
    made.guards_order = ("invariants", "spectral")
    entry = made.verdict().document["failed_requirements"][0]
    assert entry["requirement"] == "clean_all_pass"
    assert entry["failures"][0]["reasons"] == ["spectral_not_run"]


@pytest.mark.parametrize("guard", ["invariants", "spectral", "rmt"])
@pytest.mark.parametrize(("status", "reason"), [("fail", "fail"), ("error", "not_run")])
def test_a_failed_or_crashed_guard_fails_clean_edits(campaign, guard, status, reason) -> None:
    made = campaign(guards_order=("invariants", "spectral", "rmt")).write_good()
    made.write(ReportKey("tiny", "quant_clean", 1), guards={guard: {"status": status}})
    assert made.verdict().document["failed_requirements"][0]["failures"][0]["reasons"] == [f"{guard}_{reason}"]


def test_a_crashed_variance_guard_fails_clean_edits_though_it_has_no_flag(campaign) -> None:
    made = campaign(guards_order=("invariants", "variance")).write_good()
    assert made.verdict().word == "PASS"
    made.write(ReportKey("tiny", "quant_clean", 1), guards={"variance": {"status": "error"}})
    assert made.verdict().document["failed_requirements"][0]["failures"][0]["reasons"] == ["variance_not_run"]


def test_a_flag_removed_from_a_report_counts_as_false(campaign) -> None:
    made = campaign().write_good()
    report = json.loads(made.files[made.path("quant_clean")])
    del report["validation"]["invariants_pass"]
    made.files[made.path("quant_clean")] = json.dumps(report).encode()
    assert made.verdict().word == "FAIL"


def test_too_few_windows_fail_a_clean_edit_with_that_reason(campaign) -> None:
    made = campaign()
    made.policy = made.policy.model_copy(
        update={
            "thresholds": made.policy.thresholds
            | {
                "metrics.coverage.preview": made.policy.thresholds["metrics.coverage.preview"].model_copy(
                    update={"value": 99}
                )
            }
        }
    )
    reasons = made.write_good().verdict().document["failed_requirements"][0]["failures"][0]["reasons"]
    assert reasons == ["primary_metric_too_few_windows"]


# --- informational --------------------------------------------------------------------------------
def test_informational_scenarios_need_half_of_them_to_signal(campaign, catalog) -> None:
    made = campaign(catalog["clean"], catalog["shown"], catalog["shown_too"]).write_good()
    for run in (1, 2):
        made.write(ReportKey("tiny", "quant_stress", run))
    verdict = made.verdict()
    assert verdict.word == "PASS"
    assert verdict.document["informational_stress"] == {
        "total": 2,
        "signal": 1,
        "unknown": 0,
        "fraction": 0.5,
        "required": 0.5,
        "signal_kinds": ["gate_flip", "remediation", "detected_shift"],
        "by_model": {"tiny": {"total": 2, "signal": 1, "fraction": 0.5}},
        "clean": {
            "total": 1,
            "signal": 0,
            "fraction": 0.0,
            "by_kind": {"gate_flip": 0.0, "remediation": 0.0, "detected_shift": 0.0},
        },
    }
    made.write(ReportKey("tiny", "fp8_stress", 1))
    verdict = made.verdict()
    assert requirements(verdict) == [("informational_stress_min_signal_fraction", "FAIL")]


def test_missing_informational_evidence_is_incomplete_only_while_it_can_decide(campaign, catalog) -> None:
    made = campaign(catalog["clean"], catalog["shown"], catalog["shown_too"]).write_good()
    del made.files[made.path("quant_stress")]
    verdict = made.verdict()
    assert verdict.word == "PASS"  # the other half signals already
    assert verdict.document["missing"]["by_model"] == {"tiny": {"stress_informational": ["quant_stress"]}}
    made.write(ReportKey("tiny", "fp8_stress", 2))
    assert requirements(made.verdict()) == [("informational_stress_min_signal_fraction", "INCOMPLETE")]


def test_remediation_is_a_signal_of_its_own_kind(campaign, catalog) -> None:
    made = campaign(catalog["clean"], catalog["shown"], guards_order=("invariants", "spectral"))
    made.write_good()
    for run in (1, 2):
        made.write(ReportKey("tiny", "quant_stress", run), guards={"spectral": {"status": "pass", "caps_applied": 2}})
    verdict = made.verdict()
    assert verdict.word == "PASS"
    runs = [
        run
        for cell in verdict.summaries["scenario_signal_summary.json"]["cells"]
        if cell["scenario"] == "quant_stress"
        for run in cell["runs"]
    ]
    assert [run["signals"] for run in runs] == [["remediation"]] * 2
    assert [run["matched"] for run in runs] == [["spectral.caps_applied>=1"]] * 2


def test_informational_errors_never_gate(campaign, catalog) -> None:
    made = campaign(catalog["clean"], catalog["shown_error"]).write_good()
    made.write(ReportKey("tiny", "rmt_noise", 1))
    assert made.verdict().word == "PASS"
    del made.files[made.path("rmt_noise")]
    verdict = made.verdict()
    assert verdict.word == "PASS"
    assert verdict.document["missing"]["by_model"]["tiny"] == {"error_injection_informational": ["rmt_noise"]}

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from evpack.catalog.policy import resolve_policy
from evpack.errors import BrokenContract, EvidenceError
from evpack.evaluation.report import RecordFile, ReportMeta, build_report, check_report, recompute, report_digest
from evpack.files import canonical_json, pretty_json

POLICY = resolve_policy("balanced", "small")
META = ReportMeta(
    model_id="org/Tiny",
    model_name="tiny",
    scenario="edit_clean",
    category="clean",
    strictness="must_pass",
    run=1,
    seed=42,
    plan_digest="d" * 64,
)


@pytest.fixture
def sides(raw):
    base = [3.0 + i / 50 for i in range(32)]
    subject = [loss + (i % 5 - 2) / 200 for i, loss in enumerate(base)]
    return canonical_json(raw(subject)), canonical_json(raw(base, side="baseline"))


@pytest.fixture
def build(sides):
    def make(**changes):
        arguments = {
            "meta": META,
            "subject": RecordFile("records.json", sides[0]),
            "baseline": RecordFile("reports/calibration/run_1/records.json", sides[1]),
            "policy": POLICY,
            "guards": {"invariants": {"status": "pass", "failures": []}},
            "guards_order": ["invariants"],
            "dataset": {"provider": "text", "seq_len": 128},
            "provenance": {"execution_mode": "host-process"},
            "edit": {"name": "quant_rtn:8:0:ffn"},
            "generated_at": "2026-11-23T15:00:00Z",
        }
        return build_report(**(arguments | changes))

    return make


def test_a_report_fits_its_schema_and_follows_from_its_records(build, sides) -> None:
    report = build()
    assert check_report(pretty_json(report)) == json.loads(pretty_json(report))
    assert recompute(json.loads(pretty_json(report)), *sides, POLICY) == []
    assert report["meta"]["tier"] == "balanced" and report["meta"]["profile"] == "small"
    assert report["validation"]["invariants_pass"] is True


@pytest.mark.parametrize("losses", [[None] * 32, [5e30] * 32, [9.0] * 32, [3.0, 4.0] * 16])
def test_a_report_is_possible_whatever_the_subject_did(build, raw, sides, losses) -> None:
    subject = canonical_json(raw(losses))
    report = build(subject=RecordFile("records.json", subject))
    assert recompute(check_report(pretty_json(report)), subject, sides[1], POLICY) == []


def test_guards_outside_the_order_leave_no_flag(build) -> None:
    report = build()
    assert report["spectral"] == {"evaluated": False, "reason": "not in PACK_GUARDS_ORDER"}
    assert not {"spectral_stable", "rmt_stable"} & report["validation"].keys()


@pytest.mark.parametrize(("status", "flag"), [("pass", True), ("warn", True), ("fail", False), ("error", False)])
def test_the_status_of_a_guard_sets_its_flag(build, status, flag) -> None:
    report = build(guards={"invariants": {"status": status}})
    assert report["validation"]["invariants_pass"] is flag


@pytest.mark.parametrize("guards", [{}, {"invariants": {}}, {"invariants": {"status": "fine"}}])
def test_a_guard_of_the_order_without_a_result_is_a_defect(build, guards) -> None:
    with pytest.raises(BrokenContract, match="invariants"):
        build(guards=guards)


def test_records_of_another_cell_are_refused(build) -> None:
    for field, value in (("scenario", "other"), ("run", 2), ("seed", 1), ("model_name", "other")):
        with pytest.raises(EvidenceError, match=field):
            build(meta=replace(META, **{field: value}))


def test_digest_of_a_report_ignores_times_and_places_only(build) -> None:
    first = report_digest(build())
    assert report_digest(build(generated_at="2027-01-01T00:00:00Z")) == first
    moved = build(provenance={"execution_mode": "host-process", "host": "b", "path": "/x"})
    assert report_digest(moved) == first
    assert report_digest(build(guards={"invariants": {"status": "warn"}})) != first


def _changed(report, path, value):
    report = copy.deepcopy(report)
    *parents, last = path.split(".")
    node = report
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value(node[last]) if callable(value) else value
    return report


FORGERIES = [
    ("primary_metric.ratio_vs_baseline", lambda v: v * (1 + 1e-9)),
    ("primary_metric.ci", lambda v: [v[0], v[1] / 2]),
    ("primary_metric.display_ci", None),
    ("primary_metric.pooled.ratio", 0.9),
    ("primary_metric.pooled.display_ci", [0.9, 1.0]),
    ("primary_metric.outcome", "reject"),
    ("primary_metric.degraded", True),
    ("primary_metric.degraded", 0),
    ("primary_metric.surprise", 1),
    ("primary_metric.unstable", False),
    ("primary_metric.baseline_final", lambda v: 2 * v),
    ("primary_metric.acceptance_range.max", 9.0),
    ("validation.primary_metric_acceptable", False),
    ("validation.invariants_pass", False),
    ("validation.invariants_pass", ...),
    ("validation.spectral_stable", True),
    ("dataset.windows.preview", 17),
    ("dataset.windows.stats.paired_windows", 99),
    ("dataset.windows.stats.coverage.preview.required", 1),
    ("resolved_policy.metrics.pm_ratio.ratio_limit_base", 9.0),
    ("policy_digest.thresholds_hash", "0" * 64),
    ("records.subject.sha256", "0" * 64),
    ("baseline_ref.checkpoint_digest", "0" * 64),
    ("subject_ref.checkpoint_digest", "0" * 64),
    ("meta.scenario", "prune_clean"),
    ("meta.model_name", "other"),
    ("meta.run", 3),
    ("meta.profile", "release"),
    ("confidence.label", "High"),
    ("invariants.status", "fail"),
    ("dataset.tokens_available", 10**9),
    ("dataset.tokens_available", "many"),
    ("dataset", 3),
    ("invariants", None),
    ("primary_metric", []),
    ("primary_metric.ratio_vs_baseline", 10**400),
]


@pytest.mark.parametrize(("path", "value"), FORGERIES, ids=[f"{i}-{path}" for i, (path, _) in enumerate(FORGERIES)])
def test_recomputation_finds_every_forged_figure(build, sides, path, value) -> None:
    found = recompute(_changed(build(), path, value), *sides, POLICY)
    assert found
    assert any(path.split(".")[0] in line or "wrong kind" in line for line in found)


def test_recomputation_finds_changed_records_and_another_policy(build, sides, raw) -> None:
    report = build()
    assert recompute(report, canonical_json(raw([1.0] * 32)), sides[1], POLICY)
    assert recompute(report, b"{}", sides[1], POLICY)[0].startswith("subject records: schema")
    stricter = resolve_policy("conservative", "small")
    assert any("resolved_policy" in line for line in recompute(report, *sides, stricter))


def test_bca_is_attested_not_recomputed(build, sides) -> None:
    report = build(bca={"method": "bca", "ci": [0.0, 0.1]})
    assert report["primary_metric"]["bca"]["ci"] == [0.0, 0.1]
    assert recompute(report, *sides, POLICY) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", "v2"),
        ("validation.my_flag", True),
        ("validation.invariants_pass", 1),
        ("validation.primary_metric_acceptable", ...),
        ("dataset.seq_len", 0),
        ("run_id", "a"),
        ("primary_metric.outcome", "maybe"),
        ("primary_metric.ci", [1.0]),
        ("spectral", {"evaluated": True}),
        ("rmt", {"evaluated": False}),
        ("plugins", ...),
    ],
)
def test_the_schema_refuses(build, path, value) -> None:
    with pytest.raises(EvidenceError):
        check_report(json.dumps(_changed(build(), path, value)).encode())

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from evpack.catalog.scenarios import Detector
from evpack.errors import BadInput
from evpack.verdict.detectors import describe, hits
from evpack.verdict.evidence import ReportKey, read_evidence

REPORT = {
    "validation": {"primary_metric_acceptable": False, "invariants_pass": True},
    "primary_metric": {"degraded": True},
    "invariants": {"evaluated": True, "status": "WARN"},
    "spectral": {"evaluated": True, "caps_applied": 2, "summary": {"max_caps": 5}, "odd": "2"},
    "variance": {"evaluated": True, "enabled": True, "monitor_only": False},
    "rmt": {"evaluated": False, "reason": "not in PACK_GUARDS_ORDER", "caps_applied": 9},
}
SIDECARS = {
    "good_probe.json": {"status": "ok", "triggered": True},
    "quiet_probe.json": {"status": "ok", "triggered": False},
    "failed_probe.json": {"status": "error", "triggered": True},
}


@pytest.mark.parametrize(
    ("detector", "expected"),
    [
        ({"type": "validation_flag", "flag": "primary_metric_acceptable", "expected": False}, True),
        ({"type": "validation_flag", "flag": "invariants_pass", "expected": False}, False),
        ({"type": "validation_flag", "flag": "spectral_stable", "expected": False}, False),
        ({"type": "primary_metric", "field": "degraded", "expected": True}, True),
        ({"type": "primary_metric", "field": "absent", "expected": False}, False),
        ({"type": "invariants_status", "allowed": ["warn", "fail"]}, True),
        ({"type": "invariants_status", "allowed": ["fail", "error"]}, False),
        ({"type": "guard_remediation", "guard": "spectral", "field": "caps_applied", "min": 2}, True),
        ({"type": "guard_remediation", "guard": "spectral", "field": "caps_applied", "min": 3}, False),
        ({"type": "guard_remediation", "guard": "spectral", "field": "max_caps"}, True),
        ({"type": "guard_remediation", "guard": "spectral", "field": "odd"}, False),
        ({"type": "guard_remediation", "guard": "variance", "field": "enabled"}, True),
        ({"type": "guard_remediation", "guard": "variance", "field": "monitor_only"}, False),
        ({"type": "guard_remediation", "guard": "rmt", "field": "caps_applied"}, False),
        ({"type": "guard_remediation", "guard": "variance", "field": "caps_applied"}, False),
        ({"type": "probe", "file": "good_probe.json"}, True),
        ({"type": "probe", "file": "quiet_probe.json"}, False),
        ({"type": "probe", "file": "quiet_probe.json", "expected": False}, True),
        ({"type": "probe", "file": "failed_probe.json"}, False),
        ({"type": "probe", "file": "absent_probe.json"}, False),
    ],
)
def test_detectors(detector, expected) -> None:
    parsed = TypeAdapter(Detector).validate_python(detector)
    assert hits(parsed, REPORT, SIDECARS) is expected
    assert describe(parsed)


def test_probe_files_are_read_beside_the_report(campaign, catalog) -> None:
    made = campaign(catalog["shown_error"])
    key = ReportKey("tiny", "rmt_noise", 1)
    made.write(key, sidecars={"rmt_probe.json": {"status": "ok", "triggered": True}})
    assert read_evidence(made.plan, made.files.get)[key].sidecars == {
        "rmt_probe.json": {"status": "ok", "triggered": True}
    }
    made.files["tiny/reports/errors/rmt_noise/rmt_probe.json"] = b"{broken"
    assert read_evidence(made.plan, made.files.get)[key].sidecars["rmt_probe.json"]["status"] == "error"


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", ".hidden.json", "x.txt", "", "a/b.json"])
def test_a_probe_file_must_be_a_plain_name(campaign, new_scenario, name) -> None:
    made = campaign(new_scenario("x", "error_injection", "informational", [{"type": "probe", "file": name}]))
    made.write(ReportKey("tiny", "x", 1))
    with pytest.raises(BadInput, match="probe file"):
        made.verdict()

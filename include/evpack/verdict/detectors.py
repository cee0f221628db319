"""The detectors of a scenario: what in a report counts as having noticed the damage. Absent data never hits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from evpack.catalog.scenarios import (
    Detector,
    FlagDetector,
    InvariantsDetector,
    MetricDetector,
    ProbeDetector,
    RemediationDetector,
)

Report = Mapping[str, Any]


def hits(detector: Detector, report: Report, sidecars: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether one detector fires on a report and the probe files beside it."""
    match detector:
        case FlagDetector(flag=flag, expected=expected):
            return report["validation"].get(flag) is expected
        case MetricDetector(field=field, expected=expected):
            return report["primary_metric"].get(field) is expected
        case InvariantsDetector(allowed=allowed):
            return evaluated(report, "invariants") and str(report["invariants"].get("status", "")).lower() in allowed
        case RemediationDetector(guard=guard, field=field, min=minimum):
            return guard_number(report, guard, field) >= minimum
        case ProbeDetector(file=file, field=field, expected=expected):
            probe = sidecars.get(file, {})
            return probe.get("status") == "ok" and probe.get(field) is expected
    assert_never(detector)


def describe(detector: Detector) -> str:
    """A detector in words, as summaries name it."""
    match detector:
        case FlagDetector(flag=flag, expected=expected):
            return f"{flag}={str(expected).lower()}"
        case MetricDetector(field=field, expected=expected):
            return f"primary_metric.{field}={str(expected).lower()}"
        case InvariantsDetector(allowed=allowed):
            return f"invariants.status in {'|'.join(allowed)}"
        case RemediationDetector(guard=guard, field=field, min=minimum):
            return f"{guard}.{field}>={minimum:g}"
        case ProbeDetector(file=file, field=field, expected=expected):
            return f"{file}:{field}={str(expected).lower()}"
    assert_never(detector)


def evaluated(report: Report, guard: str) -> bool:
    """Whether a guard ran for this report."""
    block = report.get(guard)
    return isinstance(block, Mapping) and block.get("evaluated") is True


def guard_number(report: Report, guard: str, field: str) -> float:
    """A count of a guard's block or of its summary, 1 for true; 0 when the guard did not run or has no such number."""
    if not evaluated(report, guard):
        return 0.0
    for block in (report[guard], report[guard].get("summary")):
        value = block.get(field) if isinstance(block, Mapping) else None
        if isinstance(value, bool | int | float):
            return float(value)
    return 0.0

"""What one report says: passed or not and why, detectors that hit, signals of three kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evpack.catalog.scenarios import RemediationDetector, Scenario
from evpack.evaluation.report import GUARD_FLAGS
from evpack.verdict.detectors import describe, evaluated, guard_number, hits
from evpack.verdict.evidence import ReportEvidence, ReportKey

GATE_FLIP, REMEDIATION, DETECTED_SHIFT = "gate_flip", "remediation", "detected_shift"
SIGNAL_KINDS = (GATE_FLIP, REMEDIATION, DETECTED_SHIFT)

T = TypeVar("T")
_OWN_FLAGS = {
    "primary_metric": "primary_metric_acceptable",
    "drift": "preview_final_drift_acceptable",
    "overhead": "guard_overhead_acceptable",
    "tail": "primary_metric_tail_acceptable",
}
_GUARD_FLAGS = {guard: flag for guard, flag in GUARD_FLAGS.items() if flag is not None}
_ALWAYS = ("primary_metric", "drift")
"""Gates that every report must show; overhead and tail count when they were evaluated."""
_ORDER = ("invariants", "primary_metric", "spectral", "rmt", "drift", "overhead", "tail")
"""Order of reasons, the reference's."""


@dataclass(frozen=True)
class Interventions:
    """What guards corrected or proposed to correct in one run."""

    caps: int = 0
    """Matrices beyond the spectral cap."""
    caps_by_family: tuple[tuple[str, int], ...] = ()
    caps_exceeded: bool = False
    """More of them than the policy allows."""
    scales: tuple[tuple[str, float], ...] = ()
    """Scale that the variance guard proposes, by module."""


@dataclass(frozen=True)
class RunOutcome:
    """One expected run, judged; without usable evidence `problem` says why and the rest is empty."""

    key: ReportKey
    path: str
    problem: str | None = None
    outcome: str = ""
    """accept, reject or inconclusive, of the primary metric."""
    ratio: float | None = None
    """Perplexity relative to the baseline, over the windows that gate (preview and final pooled)."""
    display_ci: tuple[float, float] | None = None
    """Its 95 % interval."""
    passed: bool = False
    """Metric accepted and every gate that applies passed."""
    reasons: tuple[str, ...] = ()
    """Why not passed."""
    matched: tuple[str, ...] = ()
    """Detectors that hit, in words."""
    flips: tuple[str, ...] = ()
    """Guards and gates whose flag is false or which failed to run."""
    remediations: tuple[str, ...] = ()
    """Guards that corrected or capped something while staying stable."""
    signals: tuple[str, ...] = ()
    """Kinds of signals seen, of gate_flip, remediation, detected_shift."""
    probes: tuple[tuple[str, str, bool], ...] = ()
    """Probe files: name, status, whether triggered."""
    interventions: Interventions = Interventions()

    @property
    def usable(self) -> bool:
        """Whether there is evidence to judge by."""
        return self.problem is None


def judge(
    key: ReportKey,
    path: str,
    evidence: ReportEvidence | None,
    scenario: Scenario,
    guards_order: Sequence[str],
    digests: tuple[str, str],
) -> RunOutcome:
    """Judge one expected run; absence, damage, a report of something else and unpaired records are problems.

    Args:
        evidence: what `read_evidence` found, its report valid by the schema.
        digests: of the plan and of the policy, which the report must name.
    """
    if evidence is None:
        return RunOutcome(key, path, problem="no report")
    report = evidence.report
    if report is None:
        return RunOutcome(key, path, problem=evidence.problem or "no report")
    if problem := _problem(key, report, scenario, digests):
        return RunOutcome(key, path, problem=problem)
    metric = report["primary_metric"]
    flips = tuple(_flips(report, guards_order))
    detectors = scenario.requirements.detectors_any_of
    matched = [detector for detector in detectors if hits(detector, report, evidence.sidecars)]
    remediations = tuple(_remediations(report))
    by_remediation = [isinstance(detector, RemediationDetector) for detector in matched]
    seen = {
        GATE_FLIP: bool(flips) or metric["degraded"] or not all(by_remediation),
        REMEDIATION: bool(remediations) or any(by_remediation),
        DETECTED_SHIFT: metric.get("detected_shift") is True,
    }
    interval = metric["pooled"]["display_ci"]
    return RunOutcome(
        key,
        path,
        outcome=metric["outcome"],
        ratio=metric["pooled"]["ratio"],
        display_ci=None if interval is None else (interval[0], interval[1]),
        passed=metric["outcome"] == "accept" and not flips and not metric["degraded"] and not metric["invalid"],
        reasons=tuple(_reasons(report, flips)),
        matched=tuple(map(describe, matched)),
        flips=flips,
        remediations=remediations,
        signals=tuple(kind for kind in SIGNAL_KINDS if seen[kind]),
        probes=tuple(
            (name, str(probe.get("status")), probe.get("status") == "ok" and probe.get("triggered") is True)
            for name, probe in sorted(evidence.sidecars.items())
        ),
        interventions=_interventions(report),
    )


def _problem(key: ReportKey, report: Mapping[str, Any], scenario: Scenario, digests: tuple[str, str]) -> str | None:
    expected = {
        "model_name": key.model,
        "scenario": key.scenario,
        "run": key.run,
        "category": scenario.category.value,
        "strictness": scenario.strictness.value,
        "plan_digest": digests[0],
    }
    for name, value in expected.items():
        if report["meta"][name] != value:
            return f"a report of something else: its {name} is {report['meta'][name]!r}, expected {value!r}"
    if report["policy_digest"].get("thresholds_hash") != digests[1]:
        return "judged under thresholds that are not this campaign's"
    reason = report["dataset"]["windows"]["stats"]["window_pairing_reason"]
    return None if reason is None else f"the windows do not pair with the baseline's: {reason}"


def _flips(report: Mapping[str, Any], guards_order: Sequence[str]) -> Iterator[str]:
    """Gates that did not pass. A flag that must be there and is not counts as false; others count when present."""
    validation = report["validation"]
    for gate in _ORDER:
        flag = _OWN_FLAGS.get(gate) or _GUARD_FLAGS[gate]
        required = gate in _ALWAYS or gate in guards_order
        if validation.get(flag, not required) is not True:
            yield gate
    for guard in GUARD_FLAGS:  # a guard without a flag must at least have run
        if guard not in _GUARD_FLAGS and guard in guards_order and not _ran(report, guard):
            yield guard


def _ran(report: Mapping[str, Any], guard: str) -> bool:
    return evaluated(report, guard) and report[guard].get("status") != "error"


def _reasons(report: Mapping[str, Any], flips: Sequence[str]) -> Iterator[str]:
    metric = report["primary_metric"]
    if metric["degraded"] or metric["invalid"]:
        yield "primary_metric_degraded"
    for gate in flips:
        if gate == "primary_metric" and metric["outcome"] == "inconclusive":
            yield "primary_metric_inconclusive"
        elif gate == "primary_metric" and metric["outcome"] == "accept":
            yield from _other_reasons(report)
        elif gate in GUARD_FLAGS and not _ran(report, gate):
            yield f"{gate}_not_run"
        else:
            yield f"{gate}_fail"
    if metric["outcome"] != "accept" and "primary_metric" not in flips:
        yield "primary_metric_contradicts_its_flag"


def _other_reasons(report: Mapping[str, Any]) -> Iterator[str]:
    """Why a metric that was accepted has a flag that says otherwise."""
    metrics = [metric for metric in report.get("secondary_metrics", ()) if metric["acceptable"] is not True]
    for metric in metrics:
        outcome = "too_few_examples" if metric["outcome"] == "accept" else metric["outcome"]
        yield f"{metric['kind']}_{outcome}"
    if not metrics or not report["dataset"]["windows"]["stats"]["tokens"]["ok"]:
        yield "primary_metric_too_few_windows"


def _remediations(report: Mapping[str, Any]) -> Iterator[str]:
    if guard_number(report, "spectral", "caps_applied") > 0:
        yield "spectral"
    if evaluated(report, "variance") and report["variance"].get("enabled") is True:
        yield "variance"


def _interventions(report: Mapping[str, Any]) -> Interventions:
    spectral, variance = (report[guard] if evaluated(report, guard) else {} for guard in ("spectral", "variance"))
    return Interventions(
        caps=int(guard_number(report, "spectral", "caps_applied")),
        caps_by_family=tuple(sorted(_numbers(spectral.get("caps_applied_by_family"), int))),
        caps_exceeded=spectral.get("caps_exceeded") is True,
        scales=tuple(sorted(_numbers(variance.get("proposed_scales"), float))),
    )


def _numbers(value: Any, kind: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
    """The numbers of a mapping, nothing of anything else."""
    for name, number in value.items() if isinstance(value, Mapping) else ():
        if isinstance(number, int | float) and not isinstance(number, bool):
            yield name, kind(number)

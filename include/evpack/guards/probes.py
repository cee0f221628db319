"""Probe sidecars: a guard's question asked once more, on every window of a run, for the fault made to raise it.

A probe that could not run says so with status ``error`` and is never triggered. The figures that probes follow from
stand beside them, `SUBJECT_FILE` and `BASELINE_FILE`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import ProbeDetector, Scenario
from evpack.catalog.supported import PROBES, RMT_PROBE, VE_PROBE
from evpack.guards import rmt, variance
from evpack.guards.hooks_records import ActivationRecords

SUBJECT_FILE, BASELINE_FILE = "probe_activation_records.json", "baseline_probe_activation_records.json"
"""Activations on every window of the run, as far as the probes read them."""
_SCHEMAS = {RMT_PROBE: "rmt_probe_v1", VE_PROBE: "ve_probe_v1"}


def wanted(scenario: Scenario) -> tuple[str, ...]:
    """Probe files that a detector of the scenario reads."""
    detectors = scenario.requirements.detectors_any_of
    files = {detector.file for detector in detectors if isinstance(detector, ProbeDetector)}
    return tuple(name for name in PROBES if name in files)


def probe(
    file: str,
    about: Mapping[str, Any],
    policy: Policy,
    subject: ActivationRecords,
    baseline: ActivationRecords,
    try_scales: Callable[[Mapping[str, float]], variance.Trial | None],
) -> dict[str, Any]:
    """The content of a sidecar.

    Args:
        about: model_id, error_type, generated_at and what else identifies the case.
        subject: activations on every window of the run.
        baseline: the same of the baseline.
        try_scales: scores the subject with scales applied.
    """
    head = {"schema": _SCHEMAS[file], **about, "windows": _windows(subject), "error": None}
    if file == RMT_PROBE:
        result, block = rmt.assess(subject, baseline, policy)
        return {**block, **head, "stable": result.passed, "triggered": not result.passed, "status": "ok"}
    proposal = variance.propose(subject, baseline, policy)
    trial = try_scales(proposal.scales) if proposal.scales else None
    _, block = variance.assess(proposal, trial, policy, correct=True)
    gate = block["predictive_gate"]
    improves = gate["evaluated"] and gate["passed"]  # a gate that is switched off lets pass what nobody tried
    return {
        **block,
        **head,
        "scales_proposed": bool(proposal.scales),
        "meaningful_improvement": improves,
        "triggered": bool(proposal.scales) and improves,
        "status": "ok",
    }


def read_by(files: Collection[str], records: ActivationRecords) -> ActivationRecords:
    """The records with what these probes read: edge risks of all modules, variances of the ways out of branches."""
    read = {
        name: module.model_copy(
            update={
                "edge_risk": module.edge_risk if RMT_PROBE in files else (),
                "mean_square": module.mean_square if VE_PROBE in files and module.target else (),
            }
        )
        for name, module in records.modules.items()
        if RMT_PROBE in files or module.target
    }
    return records.model_copy(update={"modules": read})


def failed(file: str, about: Mapping[str, Any], why: str) -> dict[str, Any]:
    """The sidecar of a probe that could not run."""
    return {"schema": _SCHEMAS[file], **about, "status": "error", "error": why, "triggered": False}


def _windows(records: ActivationRecords) -> dict[str, Any]:
    return {
        "count": len(records.windows),
        "policy": "every window of the run",
        "window_ids": list(records.windows),
        "run": records.run,
        "digest": records.windows_digest,
    }

"""What a plan expects and what is there: one entry per report, found by the plan's paths only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from evpack.catalog.scenarios import ProbeDetector, Scenario
from evpack.errors import BadInput, EvidenceError
from evpack.evaluation.report import REPORT_NAME, check_report
from evpack.files import parse_json
from evpack.plan.model import CampaignPlan, StepType
from evpack.rundir import RunDir

_SIDECAR = re.compile(r"[A-Za-z0-9_-]+\.json")

Read = Callable[[str], bytes | None]
"""Content of a file by its POSIX path relative to the run directory, None when it is not there."""


class ReportKey(NamedTuple):
    """Names one report of a campaign."""

    model: str
    """Directory name of the model."""
    scenario: str
    run: int


@dataclass(frozen=True)
class ReportEvidence:
    """A report that was found."""

    path: str
    """POSIX, relative to the run directory (also when it was read from a pack)."""
    report: Mapping[str, Any] | None = None
    problem: str | None = None
    """Why there is no usable report; exactly one of `report` and `problem` is set."""
    sidecars: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Probe files beside the report that could be read, by file name."""


def expected_reports(plan: CampaignPlan) -> dict[ReportKey, str]:
    """Every report the plan asks for, with its path relative to the run directory, in plan order."""
    return {
        ReportKey(step.model, step.scenario, run): _report_path(plan.scenario(step.scenario), step.model, run)
        for step in plan.steps_of(StepType.EVALUATE)
        if step.model and step.scenario
        for run in step.runs
    }


def read_evidence(plan: CampaignPlan, read: Read) -> dict[ReportKey, ReportEvidence]:
    """Read the expected reports and their probe files; what is not there has no entry.

    Args:
        read: maps paths of the run directory to bytes; a pack's reader translates them to its own layout.

    Raises:
        BadInput: when the manifest names a probe file that is not a plain file name.
    """
    found = {key: read_report(plan, key, path, read) for key, path in expected_reports(plan).items()}
    return {key: evidence for key, evidence in found.items() if evidence is not None}


def read_report(plan: CampaignPlan, key: ReportKey, path: str, read: Read) -> ReportEvidence | None:
    """One expected report and its probe files, None when it is not there.

    Args:
        path: of the report, relative to the run directory.

    Raises:
        BadInput: when the manifest names a probe file that is not a plain file name.
    """
    data = read(path)
    if data is None:
        return None
    sidecars = dict(_sidecars(plan.scenario(key.scenario), path.removesuffix(REPORT_NAME), read))
    return _evidence(path, data, sidecars)


def _report_path(scenario: Scenario, model: str, run: int) -> str:
    directory = RunDir(Path()).model(model).report(scenario.id, scenario.category.value, run)
    return (directory / REPORT_NAME).as_posix()


def _evidence(path: str, data: bytes, sidecars: Mapping[str, Mapping[str, Any]]) -> ReportEvidence:
    try:
        return ReportEvidence(path, report=check_report(data, path), sidecars=sidecars)
    except EvidenceError as error:
        return ReportEvidence(path, problem=error.what, sidecars=sidecars)


def _sidecars(scenario: Scenario, directory: str, read: Read) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for detector in scenario.requirements.detectors_any_of:
        if not isinstance(detector, ProbeDetector):
            continue
        if not _SIDECAR.fullmatch(detector.file):
            raise BadInput(
                f"scenario {scenario.id!r}: probe file {detector.file!r} is not a plain name",
                "name it like x_probe.json",
            )
        data = read(directory + detector.file)
        try:
            content = None if data is None else parse_json(data, directory + detector.file)
        except EvidenceError:
            content = {"status": "error", "error": "not strict JSON"}
        if isinstance(content, dict):
            yield detector.file, content

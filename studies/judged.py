"""Evaluating a subject with the steps of a campaign, and judging its reports again under any thresholds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Category
from evpack.catalog.supported import PROBES, RMT_PROBE, VE_PROBE
from evpack.evaluation.assess import assess
from evpack.evaluation.records import ARMS, WindowRecords
from evpack.evaluation.report import GUARD_FLAGS, REPORT_NAME
from evpack.files import Json, read_json, write_json
from evpack.guards import chain, probes
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import layout
from evpack.plan.model import CampaignPlan, StepPlan, StepType, step_id
from evpack.steps.evaluate import evaluate
from evpack.verdict.evidence import ReportEvidence, ReportKey
from evpack.verdict.outcome import RunOutcome, judge
from studies.ground import Ground
from studies.subjects import Subject


def measure(ground: Ground, subject: Subject) -> float | None:
    """Make a subject, evaluate it, and forget its weights; None when that was done before.

    Returns:
        CPU seconds it took.
    """
    if is_measured(ground, subject):
        return None
    began = time.process_time()
    variant = ground.place.variant(subject.id)
    for path in (variant, *(report_directory(ground, subject, run) for run in subject.runs)):
        shutil.rmtree(path, ignore_errors=True)
    variant.mkdir(parents=True)
    subject.make(ground.baseline, variant)
    metadata = read_json(variant / "variant.json")["metadata"]
    plan = _plan(ground, subject)
    evaluate(ground.context(plan.steps_of(StepType.EVALUATE)[0], plan))
    shutil.rmtree(variant)
    seconds = time.process_time() - began
    about = {"kind": subject.kind, "family": subject.family, "place": subject.place, "runs": list(subject.runs)}
    write_json(
        _done(ground, subject),
        {**about, "tried_by": _tried_by(ground.policy), "metadata": metadata, "cpu_seconds": seconds},
    )
    return seconds


def is_measured(ground: Ground, subject: Subject) -> bool:
    """Whether a subject was evaluated on its runs, and its scales tried as today's thresholds propose them."""
    if not (file := _done(ground, subject)).is_file():
        return False
    found = read_json(file)
    same = VE_PROBE not in probes.wanted(subject.scenario) or found["tried_by"] == _tried_by(ground.policy)
    return same and found["runs"] == list(subject.runs)


def _done(ground: Ground, subject: Subject) -> Path:
    return ground.run.root / "subjects" / f"{subject.id}.json"


def _tried_by(policy: Policy) -> dict[str, Any]:
    """Thresholds that scales are proposed by."""
    return {key: leaf.value for key, leaf in policy.thresholds.items() if key.startswith("variance.")}


def report_directory(ground: Ground, subject: Subject, run: int) -> Path:
    """Where the report of a run and its raw figures stand."""
    return ground.place.report(subject.id, subject.scenario.category, run)


def _plan(ground: Ground, subject: Subject) -> CampaignPlan:
    """The campaign's plan with this subject as its only scenario."""
    model, scenario = ground.model_plan.name, subject.id
    create, judge = (
        StepPlan(
            id=step_id(type_, model, scenario),
            type=type_,
            model=model,
            scenario=scenario,
            lane=ground.model_plan.lane,
            runs=subject.runs if type_ is StepType.EVALUATE else (),
            edit=subject.edit if type_ is StepType.CREATE else None,
        )
        for type_ in (StepType.CREATE, StepType.EVALUATE)
    )
    return ground.plan.model_copy(update={"scenarios": (subject.scenario,), "steps": (create, judge)})


def judged(ground: Ground, subject: Subject, run: int, policy: Policy, every: int = 1) -> tuple[RunOutcome, Json]:
    """The report of a run as it would be under a policy, and what the verdict says of it.

    Metric, gates, guards and probes follow from the records beside the report; the invariants guard, and what came of
    scales that were tried, are as they were found.

    Args:
        every: 2 judges the losses by every other window only.

    Raises:
        EvidenceError: when files do not fit together.
    """
    directory = report_directory(ground, subject, run)
    report = dict(read_json(directory / REPORT_NAME))
    records, baseline = (
        _thinned(WindowRecords.parse(data, layout.RECORDS), every)
        for data in ((directory / layout.RECORDS).read_bytes(), ground.calibration(run, layout.RECORDS))
    )
    available = ground.windows.tokens.size
    result = assess(records, baseline, policy, tokens_available=available, noop_shift=ground.noop_shift)
    report |= {"primary_metric": result.primary_metric, "primary_metric_tail": result.tail}
    report |= _guard_blocks(ground, subject, run, directory, policy, report)
    flags = {
        flag: report[name]["status"] in ("pass", "warn")
        for name, flag in GUARD_FLAGS.items()
        if flag is not None and report[name]["evaluated"]
    }
    report["validation"] = result.validation | flags
    sidecars = {name: _probe(directory, name, policy) for name in PROBES if (directory / name).is_file()}
    outcome = judge(
        ReportKey(ground.model_plan.name, subject.id, run),
        str(directory),
        ReportEvidence(str(directory), report=report, sidecars=sidecars),
        subject.scenario,
        ground.settings.guards_order,
        (report["meta"]["plan_digest"], report["policy_digest"]["thresholds_hash"]),
    )
    return outcome, report


def _probe(directory: Path, name: str, policy: Policy) -> dict[str, Any]:
    """A sidecar under a policy."""
    found: dict[str, Any] = read_json(directory / name)
    if name != RMT_PROBE or found["status"] != "ok":
        return found
    now, before = (
        ActivationRecords.parse((directory / file).read_bytes(), file)
        for file in (probes.SUBJECT_FILE, probes.BASELINE_FILE)
    )
    return probes.probe(name, {}, policy, now, before, lambda _: None)


def _thinned(records: WindowRecords, every: int) -> WindowRecords:
    windows = tuple(window for arm in ARMS for window in records.arm(arm)[::every])
    return records.model_copy(update={"windows": windows})


def _guard_blocks(
    ground: Ground, subject: Subject, run: int, directory: Path, policy: Policy, report: Mapping[str, Any]
) -> dict[str, Any]:
    """The blocks of the guards whose figures lie beside the report; those that could not run stay as they are."""
    clean = subject.scenario.category is Category.CLEAN
    declaration = chain.Declaration.of(subject.edit, ground.baseline, clean=clean)
    blocks: dict[str, Any] = {}
    if (directory / layout.SPECTRAL).is_file():
        ours = SpectralRecords.parse((directory / layout.SPECTRAL).read_bytes(), layout.SPECTRAL)
        blocks["spectral"] = chain.spectral_block(ours, ground.spectral, policy, declaration)
    if (directory / layout.ACTIVATIONS).is_file():
        now = ActivationRecords.parse((directory / layout.ACTIVATIONS).read_bytes(), layout.ACTIVATIONS)
        before = ground.activations(run)
        blocks["rmt"] = chain.guarded("rmt", lambda: chain.rmt_block(now, before, policy, declaration))
        blocks["variance"] = chain.guarded(
            "variance", lambda: chain.variance_block(now, before, policy, lambda _: None)
        )
    return {name: {**report[name], **block} for name, block in blocks.items()}

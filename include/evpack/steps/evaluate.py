"""evaluate: score one subject on all its runs with one load, guard it, write one report per run.

A subject that is at fault (NaN, keys that nothing explains, a model that cannot be built) gets its reports all the
same, with null losses and the reason; only damaged files, missing memory or a missing need stop the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Scenario
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.profile import open_baseline
from evpack.data.windows import RunWindows
from evpack.errors import BrokenContract, CheckpointError, EvaluationError, EvidenceError, EvpackError
from evpack.evaluation.assess import paired_differences
from evpack.evaluation.bca import bca_interval
from evpack.evaluation.records import Compute, WindowRecords
from evpack.evaluation.report import GUARD_FLAGS, REPORT_NAME, RecordFile, ReportMeta, build_report, check_report
from evpack.files import pretty_json, publishing, sha256_bytes, utc_now, write_atomic
from evpack.guards import chain, invariants, spectral, variance
from evpack.guards.base import GuardResult
from evpack.guards.hooks import Listener
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.variance_scales import scaled
from evpack.presets.derive import read_preset
from evpack.steps.base import StepContext, log
from evpack.steps.guarding import (
    ACTIVATIONS_FILE,
    BASELINE_ACTIVATIONS_FILE,
    Evidence,
    declaration_of,
    encoded,
    found_activations,
    heard,
    listen,
    listener_for,
    subset,
    weigh,
)
from evpack.steps.probing import Probing
from evpack.steps.runtime_manifest import runtime_facts, runtime_manifest
from evpack.steps.subject import Bench, records_bytes, set_aside

MANIFEST_NAME = "runtime.manifest.json"

_SUBJECT_FAULTS = (CheckpointError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What the model library raises for a subject it cannot build or run; a damaged file is told apart by `_blame`."""


@dataclass(frozen=True)
class _Baseline:
    """Baseline losses that one run pairs with."""

    records: WindowRecords
    data: bytes
    rescored: bool
    activations: bytes | None
    """Content of its activation records, None when no guard of the order needs them."""


@dataclass(frozen=True)
class _Case:
    """What a subject is judged by."""

    scenario: Scenario
    policy: Policy
    order: tuple[str, ...]
    declaration: chain.Declaration

    @property
    def sampled(self) -> int:
        """Windows per run on which guards listen."""
        return chain.sampled_windows(self.order, self.policy)


@dataclass
class _Subject:
    """The subject while it is evaluated: its model when it could be loaded, else why not."""

    checkpoint: DeltaCheckpoint
    model: Any = None
    unexplained: tuple[str, ...] = ()
    failure: str | None = None


def evaluate(ctx: StepContext) -> list[Path]:
    """Publish the report directory of every run of the step's scenario.

    Each holds evaluation.report.json, runtime.manifest.json and records.json, the raw figures of the guards that ran,
    the probes that the scenario asks for, and baseline_records.json where the calibration's losses were computed in
    another way (an out-of-memory retry halved the batch, say).

    Raises:
        CheckpointError: when baseline or variant are damaged on disk.
        EvidenceError: when policy or preset are malformed or of another model.
        OutOfMemory: when model or batch do not fit.
    """
    bench = Bench.set_up(ctx)
    scenario = _scenario(ctx)
    policy = Policy.parse(ctx.run.policy.read_bytes(), str(ctx.run.policy))
    case = _Case(scenario, policy, tuple(_guards_order(ctx, bench)), declaration_of(ctx, bench, scenario))
    subject = _Subject(DeltaCheckpoint(bench.baseline, bench.place.variant(scenario.id)))
    runs = [bench.windows.run(number) for number in ctx.step.runs]
    baselines = _baselines(bench, runs, case.sampled)
    probing = Probing.prepare(bench, scenario, runs)
    _load(bench, subject)
    weights = _weights(ctx, bench, case, subject)
    facts = runtime_facts(ctx)
    published = []
    for run in runs:
        target = bench.place.report(scenario.id, scenario.category, run.run)
        published.append(target)
        baseline = baselines[run.run]
        compute = baseline.records.compute if subject.model is None else bench.contract(subject.model)
        if target.exists():
            if _is_there(bench, target, run, subject, baseline, compute):
                log.info("%s run %d is there already", scenario.id, run.run)
                continue
            set_aside(ctx, target)
        files = _files(ctx, bench, case, subject, run, baseline, compute, weights, probing, facts)
        with publishing(target, str(ctx.attempt)) as part:
            for name, data in files.items():
                write_atomic(part / name, data)
    return published


def _scenario(ctx: StepContext) -> Scenario:
    if ctx.step.scenario is None:
        raise BrokenContract(f"step {ctx.step.id} has no scenario")
    return ctx.plan.scenario(ctx.step.scenario)


def _guards_order(ctx: StepContext, bench: Bench) -> list[str]:
    """The guards' order from the model's preset, which must be of this model and of these windows.

    Raises:
        EvidenceError: when it is not.
    """
    path = ctx.run.preset(bench.plan.name)
    preset = read_preset(path)
    meta, dataset = preset["_calibration_meta"], preset["dataset"]
    first = bench.windows.runs[0]
    expected = (bench.plan.name, ctx.settings.tier, bench.windows.seq_len, len(first.preview), len(first.final))
    given = (meta.get("model_name"), meta.get("tier"), *(dataset.get(k) for k in ("seq_len", "preview_n", "final_n")))
    if given != expected:
        raise EvidenceError(
            f"preset {path} is of (model, tier, seq_len, preview, final) {given}, this evaluation of {expected}",
            "redo derive_preset",
        )
    return [str(name) for name in preset["guards"].get("order", ())]


def _baselines(bench: Bench, runs: list[RunWindows], sampled: int) -> dict[int, _Baseline]:
    """The baseline's side of each run: calibration's where it scored the same way, else scored now and once."""
    found: dict[int, _Baseline] = {}
    model = None
    for run in runs:
        file = bench.place.calibration / f"run_{run.run}" / "records.json"
        records = bench.found_records(file, run, bench.baseline.digest())
        activations = found_activations(bench, file.with_name(ACTIVATIONS_FILE), run, sampled) if sampled else None
        complete = not sampled or activations is not None
        if records is not None and bench.expects(records.compute) and complete:
            found[run.run] = _Baseline(records, file.read_bytes(), False, activations)
            continue
        log.info("run %d: calibration scored in another way; the baseline is scored again", run.run)
        model = bench.load_baseline() if model is None else model
        listener = listener_for(run, sampled)
        sums, digest = bench.score(model, run, listener), bench.baseline.digest()
        records = bench.records(run, sums, bench.contract(model), digest)
        if listener is not None:
            activations = encoded(heard(bench, run, listener, bench.baseline, baseline=True))
        found[run.run] = _Baseline(records, records_bytes(records), True, activations)
    return found


def _load(bench: Bench, subject: _Subject) -> None:
    """Load the subject; what stops it from being a sound model is written down, not raised."""
    try:
        model, loading = bench.load(subject.checkpoint)
    except _SUBJECT_FAULTS as error:
        subject.failure = _blame(bench, subject, "load_failed", error)
        return
    subject.unexplained = loading.unexplained
    if loading.unexplained:  # parameters left to chance: their losses would be no property of the subject
        subject.failure = f"unexplained_keys:{len(loading.unexplained)}"
        return
    subject.model = model


def _score(
    bench: Bench, subject: _Subject, run: RunWindows, compute: Compute, scenario: str, listener: Listener | None
) -> WindowRecords:
    """The subject's records of one run; all null with the reason when it cannot be run."""
    failure = subject.failure
    sums = [math.nan] * len(run.in_order())
    if subject.model is not None:
        try:
            sums = bench.score(subject.model, run, listener)
        except _SUBJECT_FAULTS as error:
            failure = _blame(bench, subject, "forward_failed", error)
    return bench.records(run, sums, compute, subject.checkpoint.digest(), scenario, failure)


def _blame(bench: Bench, subject: _Subject, what: str, error: Exception) -> str:
    """The reason to write down when the subject is at fault: its files are intact, yet it cannot be run.

    Raises:
        CheckpointError: when it is the files of baseline or variant that are damaged.
    """
    open_baseline(bench.place)
    for name in subject.checkpoint.names():
        subject.checkpoint.read(name)  # checked against its digest
    line = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
    log.warning("subject at fault, %s: %s", what, line)
    return f"{what}:{type(error).__name__}: {line}"


def _weights(ctx: StepContext, bench: Bench, case: _Case, subject: _Subject) -> Evidence:
    """The guards that look at stored tensors, once per subject; an unknown name is an error, never a pass."""
    evidence = Evidence()
    if spectral.NAME in case.order:
        evidence = weigh(ctx, bench, case.policy, subject.checkpoint, case.declaration)
    if invariants.NAME in case.order:
        evidence.blocks[invariants.NAME] = invariants.report_block(*_invariants(bench, subject))
    for name in case.order:
        if name not in GUARD_FLAGS:
            evidence.blocks[name] = chain.could_not_run(name, "no guard has this name")
    return evidence


def _invariants(bench: Bench, subject: _Subject) -> tuple[GuardResult, GuardResult]:
    reference = invariants.prepare(bench.baseline)
    try:
        post = invariants.validate(
            subject.checkpoint,
            reference,
            subject.checkpoint.variant.declaration,
            unexplained_keys=subject.unexplained,
            load_error=None if subject.unexplained else subject.failure,
        )
    except (EvpackError, OSError, MemoryError):
        raise  # damaged files and missing memory are no findings about the subject
    except Exception as error:
        post = invariants.failed(error)
    return reference.result(), post


def _is_there(
    bench: Bench, target: Path, run: RunWindows, subject: _Subject, baseline: _Baseline, compute: Compute
) -> bool:
    """Whether an earlier attempt's report is of this subject, these windows and this baseline."""
    found = bench.found_records(target / "records.json", run, subject.checkpoint.digest())
    if found is None or found.compute != compute or not (target / MANIFEST_NAME).is_file():
        return False
    try:
        report = check_report((target / REPORT_NAME).read_bytes())
    except (OSError, EvidenceError):
        return False
    return bool(report["records"]["baseline"]["sha256"] == sha256_bytes(baseline.data))


def _files(
    ctx: StepContext,
    bench: Bench,
    case: _Case,
    subject: _Subject,
    run: RunWindows,
    baseline: _Baseline,
    compute: Compute,
    weights: Evidence,
    probing: Probing,
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """Score one run and guard it: the files of its report directory by name."""
    listener = listener_for(run, len(run.in_order()) if probing.files else case.sampled)
    records = _score(bench, subject, run, compute, case.scenario.id, listener)

    def hear() -> ActivationRecords:
        if listener is None or subject.model is None:
            raise EvaluationError(f"the subject could not be run ({subject.failure})")
        return heard(bench, run, listener, subject.checkpoint, baseline=False)

    def try_scales(scales: Mapping[str, float]) -> variance.Trial | None:
        without = [math.nan if window.nll_sum is None else window.nll_sum for window in records.windows]
        with scaled(subject.model, scales):
            return variance.Trial.of(
                without, bench.score(subject.model, run), [window.predicted_tokens for window in records.windows]
            )

    evidence = weights
    if baseline.activations is not None:
        path = _baseline_file(bench, case.scenario, run, baseline, BASELINE_ACTIVATIONS_FILE, ACTIVATIONS_FILE)
        sample = ActivationRecords.parse(baseline.activations, path.name).windows
        heard_ones = listen(
            case.order,
            case.policy,
            case.declaration,
            lambda: subset(hear(), sample),
            baseline.activations,
            path,
            try_scales,
        )
        evidence = heard_ones.with_weights(weights)
    for name, block in evidence.blocks.items():
        log.info("%s run %d: guard %s: %s", case.scenario.id, run.run, name, block["status"])
    about = {
        "model_id": bench.plan.id,
        "error_type": case.scenario.id,
        "run": run.run,
        "seed": run.seed,
        "subject": subject.checkpoint.digest(),
        "baseline": bench.baseline.digest(),
    }
    return (
        _report_files(ctx, bench, case, subject, records, baseline, evidence, facts)
        | evidence.files
        | probing.sidecars(run, case.policy, about, hear, try_scales)
    )


def _baseline_file(
    bench: Bench, scenario: Scenario, run: RunWindows, baseline: _Baseline, own: str, shared: str
) -> Path:
    """Where a file of the baseline's side of a run stands, relative to the model's directory."""
    if baseline.rescored:
        return (bench.place.report(scenario.id, scenario.category, run.run) / own).relative_to(bench.place.root)
    return Path("reports") / "calibration" / f"run_{run.run}" / shared


def _report_files(
    ctx: StepContext,
    bench: Bench,
    case: _Case,
    subject: _Subject,
    records: WindowRecords,
    baseline: _Baseline,
    evidence: Evidence,
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """The report, what ran where, and the losses that it follows from."""
    if records.compute != baseline.records.compute:
        raise EvaluationError(
            f"subject and baseline of run {records.run} were computed in different ways: {records.compute} and "
            f"{baseline.records.compute}",
            "redo calibrate",
        )
    scenario, policy, run = case.scenario, case.policy, bench.windows.run(records.run)
    baseline_file = _baseline_file(bench, scenario, run, baseline, "baseline_records.json", "records.json")
    data = records_bytes(records)
    differences, weights = paired_differences(records, baseline.records)
    now = utc_now()
    report = build_report(
        meta=ReportMeta(
            model_id=bench.plan.id,
            model_name=bench.plan.name,
            scenario=scenario.id,
            category=scenario.category,
            strictness=scenario.strictness,
            run=records.run,
            seed=records.seed,
            plan_digest=ctx.plan.digest(),
        ),
        subject=RecordFile("records.json", data),
        baseline=RecordFile(baseline_file.as_posix(), baseline.data),
        policy=policy,
        guards=evidence.blocks,
        guards_order=case.order,
        dataset={
            "provider": bench.windows.provider,
            "split": None,
            "seq_len": bench.windows.seq_len,
            "stride": bench.windows.seq_len,
            "tokens_available": bench.windows.tokens.size,
        },
        provenance={**facts, "tokenizer_sha256": bench.windows.tokenizer_digest},
        edit={"name": scenario.id, **subject.checkpoint.variant.metadata},
        generated_at=now,
        bca=bca_interval(
            differences,
            weights,
            seed=records.seed,
            replicates=int(policy.number("metrics.bootstrap.replicates")),
            alpha=policy.number("metrics.bootstrap.alpha"),
        ),
    )
    metric = report["primary_metric"]
    log.info("%s run %d: %s, ratio %s", scenario.id, records.run, metric["outcome"], metric["pooled"]["ratio"])
    report_data = pretty_json(report)
    manifest = runtime_manifest(ctx, facts, report_data, ctx.run.preset(bench.plan.name), now)
    files = {REPORT_NAME: report_data, MANIFEST_NAME: pretty_json(manifest), "records.json": data}
    if baseline.rescored:
        files[baseline_file.name] = baseline.data
        if baseline.activations is not None:
            files[BASELINE_ACTIVATIONS_FILE] = baseline.activations
    return files

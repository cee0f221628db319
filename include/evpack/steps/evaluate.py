"""evaluate: score one subject on all its runs with one load, guard it, write one report per run.

A subject that is at fault (NaN, keys that nothing explains, a model that cannot be built) gets its reports all the
same, with null losses and the reason; only damaged files, missing memory or a missing need stop the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy
from evpack.data.windows import RunWindows
from evpack.errors import BrokenContract, EvaluationError, EvidenceError
from evpack.evaluation.overhead import asked_for
from evpack.evaluation.records import Compute, WindowRecords
from evpack.evaluation.report import GUARD_FLAGS, REPORT_NAME, check_report
from evpack.files import sha256_bytes
from evpack.guards import chain, invariants_assess, spectral, variance
from evpack.guards.hooks import Listener
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.variance_scales import scaled
from evpack.pack import layout
from evpack.presets.derive import read_preset
from evpack.publishing import publishing, write_atomic
from evpack.steps.base import StepContext, log
from evpack.steps.guarding import Evidence, declaration_of, heard, listen, listener_for, subset, weigh
from evpack.steps.pairing import BaselineSide, baseline_sides
from evpack.steps.probing import Probing
from evpack.steps.repeats import is_repeated, repeat
from evpack.steps.reporting import report_files
from evpack.steps.runtime_manifest import runtime_facts
from evpack.steps.subject import Bench, measured_noop_shift, measured_overhead, set_aside
from evpack.steps.trial import Case, Subject


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
    case = _case(ctx, bench)
    scenario = case.scenario
    runs = {
        bench.windows.run(number): bench.place.report(scenario.id, scenario.category, number)
        for number in ctx.step.runs
    }
    baselines = baseline_sides(bench, runs, case.sampled)
    probing = Probing.prepare(bench, scenario, list(runs))
    subject = Subject.load(bench, scenario.id, next(iter(baselines.values())).records.compute)
    one = _Evaluation(ctx, bench, case, subject, probing, _weights(ctx, bench, case, subject), runtime_facts(ctx))
    for run, target in runs.items():
        baseline = baselines[run.run]
        compute = one.compute(baseline)
        if target.exists():
            if one.is_there(target, run, baseline, compute):
                log.info("%s run %d is there already", scenario.id, run.run)
                continue
            set_aside(ctx, target)
        files = one.files(run, baseline, compute)
        with publishing(target, str(ctx.attempt)) as part:
            for name, data in files.items():
                write_atomic(part / name, data)
    if not is_repeated(ctx):
        return list(runs.values())
    first = next(iter(runs))

    def again() -> bytes:
        subject.model = None  # before another takes its place in memory
        baseline = baselines[first.run]
        other = one.anew(baseline)
        return other.files(first, baseline, other.compute(baseline))[REPORT_NAME]

    return [*runs.values(), repeat(ctx, runs[first] / REPORT_NAME, again)]


def _case(ctx: StepContext, bench: Bench) -> Case:
    if ctx.step.scenario is None:
        raise BrokenContract(f"step {ctx.step.id} has no scenario")
    scenario = ctx.plan.scenario(ctx.step.scenario)
    policy = Policy.parse(ctx.run.policy.read_bytes(), str(ctx.run.policy))
    clean = ctx.plan.clean_edits(bench.plan.name).get(scenario.id)
    path = ctx.run.preset(bench.plan.name, clean.edit_type if clean else None)
    if not path.exists():  # presets made for a plan without this edit: a variant differs only in what it says
        path = ctx.run.preset(bench.plan.name)
    order = tuple(_guards_order(ctx, bench, path))
    return Case(
        scenario,
        policy,
        order,
        declaration_of(ctx, bench, scenario),
        measured_noop_shift(bench.place),
        measured_overhead(bench.place) if asked_for(policy) else None,
        path,
    )


def _guards_order(ctx: StepContext, bench: Bench, path: Path) -> list[str]:
    """The guards' order from a preset, which must be of this model and of these windows.

    Raises:
        EvidenceError: when it is not.
    """
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


def _weights(ctx: StepContext, bench: Bench, case: Case, subject: Subject) -> Evidence:
    """The guards that look at stored tensors, once per subject; an unknown name is an error, never a pass."""
    evidence = Evidence()
    if spectral.NAME in case.order:
        evidence = weigh(ctx, bench, case.policy, subject.checkpoint, case.declaration)
    if invariants_assess.NAME in case.order:
        evidence.blocks[invariants_assess.NAME] = invariants_assess.report_block(*subject.invariants(bench))
    for name in case.order:
        if name not in GUARD_FLAGS:
            evidence.blocks[name] = chain.could_not_run(name, "no guard has this name")
    return evidence


@dataclass(frozen=True)
class _Evaluation:
    """One subject with everything that its runs share."""

    ctx: StepContext
    bench: Bench
    case: Case
    subject: Subject
    probing: Probing
    weights: Evidence
    """Of the guards that look at stored tensors."""
    facts: Mapping[str, Any]
    """What runs where."""

    def compute(self, baseline: BaselineSide) -> Compute:
        """How the subject is scored; as its baseline was where it cannot be."""
        return baseline.records.compute if self.subject.model is None else self.bench.contract(self.subject.model)

    def anew(self, baseline: BaselineSide) -> _Evaluation:
        """The same with the subject loaded and weighed once more."""
        subject = Subject.load(self.bench, self.case.scenario.id, baseline.records.compute)
        return replace(self, subject=subject, weights=_weights(self.ctx, self.bench, self.case, subject))

    def is_there(self, target: Path, run: RunWindows, baseline: BaselineSide, compute: Compute) -> bool:
        """Whether an earlier attempt's report is of this subject, these windows and this baseline."""
        found = self.bench.found_records(target / layout.RECORDS, run, self.subject.checkpoint.digest())
        if found is None or found.compute != compute or not (target / layout.RUNTIME).is_file():
            return False
        try:
            report = check_report((target / REPORT_NAME).read_bytes())
        except (OSError, EvidenceError):
            return False
        return bool(report["records"]["baseline"]["sha256"] == sha256_bytes(baseline.data))

    def files(self, run: RunWindows, baseline: BaselineSide, compute: Compute) -> dict[str, bytes]:
        """Score one run and guard it: the files of its report directory by name."""
        scenario = self.case.scenario.id
        listener = listener_for(run, len(run.in_order()) if self.probing.files else self.case.sampled)
        records = self.subject.score(self.bench, run, compute, scenario, listener)
        guarding = _Guarding(self, run, records, listener)
        evidence = guarding.listened(baseline).with_weights(self.weights)
        for name, block in evidence.blocks.items():
            log.info("%s run %d: guard %s: %s", scenario, run.run, name, block["status"])
        return (
            report_files(self.ctx, self.bench, self.case, self.subject, records, baseline, evidence.blocks, self.facts)
            | evidence.files
            | guarding.sidecars()
        )


@dataclass(frozen=True)
class _Guarding:
    """What the listening guards and probes of one run ask for."""

    one: _Evaluation
    run: RunWindows
    records: WindowRecords
    listener: Listener | None

    def listened(self, baseline: BaselineSide) -> Evidence:
        """Blocks and files of the guards that listen; empty when none does."""
        if baseline.activations is None:
            return Evidence()
        path = baseline.activations_path
        sample = ActivationRecords.parse(baseline.activations, path.name).windows
        case = self.one.case
        return listen(
            case.order,
            case.policy,
            case.declaration,
            lambda: subset(self.heard, sample),
            baseline.activations,
            path,
            self.try_scales,
        )

    def sidecars(self) -> dict[str, bytes]:
        """The probes that the scenario asks for, by file name."""
        bench, case = self.one.bench, self.one.case
        about = {
            "model_id": bench.plan.id,
            "error_type": case.scenario.id,
            "run": self.run.run,
            "seed": self.run.seed,
            "subject": self.one.subject.checkpoint.digest(),
            "baseline": bench.baseline.digest(),
        }
        return self.one.probing.sidecars(self.run, case.policy, about, lambda: self.heard, self.try_scales)

    @cached_property
    def heard(self) -> ActivationRecords:
        """What was heard of the subject.

        Raises:
            EvaluationError: when it could not be run, or listening went wrong.
        """
        subject = self.one.subject
        if self.listener is None or subject.model is None:
            raise EvaluationError(f"the subject could not be run ({subject.failure})")
        return heard(self.one.bench, self.run, self.listener, subject.checkpoint, baseline=False)

    def try_scales(self, scales: Mapping[str, float]) -> variance.Trial | None:
        """The subject scored once more with scales applied."""
        without = [math.nan if window.nll_sum is None else window.nll_sum for window in self.records.windows]
        tokens = [window.predicted_tokens for window in self.records.windows]
        model = self.one.subject.model
        with scaled(model, scales):
            return variance.Trial.of(without, self.one.bench.score(model, self.run).sums, tokens)

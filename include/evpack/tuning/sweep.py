"""The sweep: score the baseline once, then the rungs of each edit from strong to mild until one is acceptable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evpack import __version__
from evpack.catalog.config import policy_overrides
from evpack.catalog.edit_spec import EditType, ResolvedEdit
from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.scenarios import Category, Manifest
from evpack.catalog.suites import settings_for, suite
from evpack.data.preflight import check_source
from evpack.data.sources import source_from
from evpack.data.windows import WindowDemand, WindowSet, schedule_runs, too_short
from evpack.edits import SUPPORTED, apply_edit
from evpack.errors import BadInput, CheckpointError, EvaluationError
from evpack.evaluation.records import WindowRecords
from evpack.files import digest_json, sha256_bytes, utc_now
from evpack.home import Home
from evpack.plan.campaign import plan_campaign
from evpack.plan.model import StepType
from evpack.publishing import beside
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.setup_baseline import setup_baseline
from evpack.steps.subject import Bench
from evpack.tuning.acceptance import Shape, acceptance, judge, passes
from evpack.tuning.entry import Entry, Trial, entry_of, pooled
from evpack.tuning.guards import Guards
from evpack.tuning.ladder import ladder, words

POOL_WINDOWS = 128
"""Windows measured on, at least; never fewer than one run has."""
POOL_SEED = 1042
"""Seed of the pool's schedule; the campaign's own windows, which it leaves alone, are drawn with another one."""

_SCENARIO = "tune"
"""Stands in a trial's variant and records where a campaign has a scenario."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to tune."""

    model: str
    """An id that a suite knows, a directory, or a hub id."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the campaign the parameters are for, as for `evpack plan`."""
    edits: Sequence[str] = ()
    """Edit types; all that can be made when empty."""
    windows: int = POOL_WINDOWS


def tune(request: Request, home: Home, tell: Tell) -> Iterator[tuple[str, EditType, Entry]]:
    """Find the strongest clean parameters of each edit type for a model.

    Args:
        home: where models are found and the scratch directory is made.
        tell: gets one line per rung.

    Yields:
        The model's id, an edit type and its entry, as the tuned parameters file holds it, as soon as it is found.

    Raises:
        BadInput: unknown model, edit type or text; a campaign without clean runs.
        DataError: the text has too few windows besides the campaign's own.
        CheckpointError, EvaluationError: the baseline is damaged or its loss is not finite.
    """
    kinds = [_kind(name) for name in request.edits] or list(SUPPORTED)
    params = {**request.params, "models": [request.model]}
    settings = settings_for(params, {}, os.environ, home)
    if settings.clean_edit_runs == 0:
        raise BadInput("CLEAN_EDIT_RUNS=0: there are no runs that an edit could pass", "set it to 1 or more")
    if request.windows < 2:
        raise BadInput(f"{request.windows} windows give no interval", f"measure on {POOL_WINDOWS} or more")
    with beside(home.create().root / "tune", "run") as scratch:
        bench = _set_up(settings, home, scratch)
        sweep = _Sweep.begin(bench, settings, request.windows, scratch, tell)
        for kind in kinds:
            yield bench.plan.id, kind, sweep.entry(kind)


def _kind(name: str) -> EditType:
    for known in SUPPORTED:
        if known == name:
            return known
    raise BadInput(f"edit type {name!r} cannot be tuned", f"use one of {', '.join(SUPPORTED)}")


def _set_up(settings: Settings, home: Home, scratch: Path) -> Bench:
    """The model as a campaign would set it up: same source, same checks, same windows."""
    manifest = parse_as(Manifest, shipped(suite(settings.suite).scenarios), settings.suite)
    harmful = next(s.id for s in manifest.scenarios if s.category is not Category.CLEAN)
    planned = settings.model_copy(update={"scenarios": (harmful,)})  # clean ones need what is only now looked for
    run = RunDir(scratch / "run")
    plan = plan_campaign(run, planned, home, source_repo={}, check_source=check_source)
    context = StepContext(run, plan, planned, plan.steps_of(StepType.SETUP_BASELINE)[0], home)
    setup_baseline(context)
    return Bench.set_up(context)


@dataclass(frozen=True)
class _Sweep:
    """The pool with its baseline losses, against which every rung is measured."""

    bench: Bench
    """Its windows are the pool's: runs as a campaign has them."""
    baseline: tuple[WindowRecords, ...]
    """One per run of the pool."""
    guards: Guards
    policy: Policy
    shape: Shape
    facts: Mapping[str, Any]
    """What the figures of every entry hold for."""
    scratch: Path
    tell: Tell

    @classmethod
    def begin(cls, campaign: Bench, settings: Settings, windows: int, scratch: Path, tell: Tell) -> _Sweep:
        """Cut the pool and score the baseline on it."""
        demand = WindowDemand.from_settings(settings)
        tokens = campaign.windows.text_tokens
        shape = Shape(settings.clean_edit_runs, demand.preview, demand.final, tokens)
        bench = replace(campaign, windows=_pool(campaign.windows, demand, windows))
        tell(f"baseline: {demand.per_run * len(bench.windows.runs)} of {len(bench.windows.tokens)} windows")
        policy = resolve_policy(settings.tier, settings.profile, policy_overrides(settings))
        model = bench.load_baseline()
        baseline = tuple(_scores(bench, model, bench.baseline.digest()))
        if broken := [w for records in baseline for w in records.windows if w.nll_sum is None]:
            raise EvaluationError(
                f"baseline loss of {len(broken)} windows is not finite ({broken[0].reason})", "give a healthy baseline"
            )
        guards = Guards.of_baseline(bench, model, settings.guards_order, policy)
        facts = _facts(bench, settings, policy, baseline)
        return cls(bench, baseline, guards, policy, shape, facts, scratch, tell)

    def entry(self, kind: EditType) -> Entry:
        """The tuned entry of an edit type.

        Raises:
            CheckpointError: when not one rung could even be made.
        """
        trials: list[Trial] = []
        for edit in reversed(ladder(kind, self.bench.baseline)):
            trials.append(self._trial(edit))
            self.tell(f"{kind}: {trials[-1]}")
            if trials[-1].good:
                break
        if not any(trial.windows for trial in trials):
            raise CheckpointError(f"{kind}: no parameters could be tried: {trials[-1].problem}", "mend the checkpoint")
        return entry_of(trials, self.shape, self.facts)

    def _trial(self, edit: ResolvedEdit) -> Trial:
        """Make the variant and score it: one run first, the rest of the pool only when that one passes."""
        directory = self.scratch / "variant"
        directory.mkdir()
        try:
            device = self.bench.where.device
            variant = apply_edit(self.bench.baseline, edit, directory, scenario=_SCENARIO, device=device)
        except CheckpointError as error:  # an overflow, say: no parameters for this model
            shutil.rmtree(directory)
            return Trial(edit, problem=error.what)
        model, loading = self.bench.load(variant)
        if loading.unexplained:
            raise EvaluationError(f"{words(edit)} does not load cleanly: {loading.unexplained[0]}")
        scores = _scores(self.bench, model, variant.digest(), _SCENARIO)
        subject = [next(scores)]
        first = judge(subject[0], self.baseline[0], self.policy, self.shape)
        problem = self.guards.flagged(self.bench, model, variant, edit) if passes(first) else first.outcome
        shutil.rmtree(directory)  # before the rest: a variant may be as large as the model
        if problem:
            interval = pooled(subject, self.baseline[:1])
            return Trial(edit, self.shape.per_run, interval, problem=f"its first run does not pass ({problem})")
        subject += scores
        chance = acceptance(subject, self.baseline, self.policy, self.shape)
        return Trial(edit, len(subject) * self.shape.per_run, pooled(subject, self.baseline), chance)


def _scores(bench: Bench, model: Any, digest: str, scenario: str | None = None) -> Iterator[WindowRecords]:
    """Records of each run of the pool, scored when they are asked for."""
    for run in bench.windows.runs:
        yield bench.records(run, bench.score(model, run), bench.contract(model), digest, scenario)


def _pool(campaign: WindowSet, demand: WindowDemand, wanted: int) -> WindowSet:
    """Windows that no run of the campaign uses, in runs of its shape: what is chosen on them is not tested on them.

    Raises:
        DataError: when the text has too few.
    """
    used = {row for run in campaign.runs for row, _ in run.in_order()}
    free = [row for row in range(len(campaign.tokens)) if row not in used]
    needed = replace(demand, runs=-(-wanted // demand.per_run))
    if len(free) < needed.windows:
        raise too_short(len(free), needed, f"besides the {len(used)} of the campaign's runs")
    runs = schedule_runs(len(free), needed, POOL_SEED)
    return replace(campaign, tokens=campaign.tokens[free], runs=runs, seed=POOL_SEED)


def _facts(bench: Bench, settings: Settings, policy: Policy, baseline: Sequence[WindowRecords]) -> dict[str, Any]:
    minimum, limit = policy.acceptance
    first, windows = baseline[0], (window for records in baseline for window in records.windows)
    texts = [sha256_bytes(text.encode("utf-8")) for text in source_from(settings).texts()]
    return {
        "limits": [minimum, limit],
        "tier": settings.tier,
        "profile": settings.profile,
        "model_digest": first.checkpoint_digest,
        "text_digest": digest_json(texts),
        "windows_digest": digest_json(sorted(window.tokens_sha256 for window in windows)),
        "window_seed": POOL_SEED,
        "seq_len": bench.windows.seq_len,
        "stride": bench.windows.stride,
        "compute": first.compute.model_dump(),
        "versions": {**first.versions, "evpack": __version__},
        "date": utc_now()[:10],
    }

"""From settings to a plan: `build_plan` decides, `plan_campaign` checks the run directory and writes state/.

Everything that can be refused is refused before the first byte is written; plan.json is written last, so a
directory is planned entirely or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evpack import __version__
from evpack.catalog.config import policy_overrides
from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.policy import resolve_policy
from evpack.catalog.scenarios import Category, ErrorGeneration, Scenario
from evpack.catalog.suites import chosen_models, chosen_scenarios, runs_of
from evpack.catalog.supported import FAULT_TENSORS
from evpack.catalog.tuned import TunedParams, load_tuned
from evpack.errors import BadInput, MissingFile
from evpack.files import Json, utc_now, write_json
from evpack.home import Home
from evpack.plan import preflight
from evpack.plan.disk import ModelSpace, check_space, variant_budget_gb
from evpack.plan.lanes import lane_of
from evpack.plan.memory import Devices, check_lanes, edits_share_a_pass, memory_plan, scoring_gb
from evpack.plan.model import CLOSING, CampaignPlan, ModelPlan, StepPlan, StepType, load_plan, step_id
from evpack.plan.order import sort_models
from evpack.plan.placement import Place, places, share_out
from evpack.plan.reuse import reused_presets
from evpack.plan.revisions import pins_document, settle_pins, store_pins
from evpack.plan.sources import Source, open_source
from evpack.publishing import write_atomic
from evpack.rundir import RunDir, model_name
from evpack.settings import Settings

_LOCATION = frozenset({"resume", "resume_mode", "output_dir", "output_dir_absolute", "suite_mode"})
"""Settings that say where a campaign is and which part runs now, not what it is; a resume may be given them anew."""


@dataclass(frozen=True)
class Draft:
    """A campaign that was decided but not written."""

    plan: CampaignPlan
    documents: Mapping[str, Json]
    """Further files of state/ by name."""
    space: tuple[ModelSpace, ...]
    checkpoints: tuple[Path, ...]
    """Checkpoint directories, in the order of the plan's models."""
    pins: Mapping[str, Any]
    """Pinned revisions of the hub models by id."""


def build_plan(settings: Settings, home: Home, now: str, devices: Devices | None = None) -> Draft:
    """Decide a campaign. Reads sources (suite data, checkpoints' headers, pins, the hub), writes no file of its own.

    All of it is planned, whatever part runs now. Calibration asks for no parameters of clean edits.

    Args:
        now: UTC time, ISO 8601; the only thing in which two drafts of the same input differ.
        devices: accelerators of a single host to plan for; those of the deployment's hosts when None.

    Raises:
        BadInput: unsupported settings, unknown suite or scenario, models that are not there or do not fit, edits
            without parameters (calibrate-only: a wrong one), two models of one name.
    """
    preflight.check_settings(settings)
    whole = settings.model_copy(update={"suite_mode": "full"})
    overrides = policy_overrides(settings)
    policy = resolve_policy(settings.tier, settings.profile, overrides)
    manifest = chosen_scenarios(settings)
    preflight.check_kinds(manifest.scenarios)
    chosen = chosen_models(settings)
    pins = settle_pins([model.id for model in chosen if model.location is None], settings, home, now)
    sources = [open_source(model, settings, home, now, pins) for model in chosen]
    preflight.check_names(sources)
    sources = sort_models(sources, settings.order, lambda source: source.weights_gb, lambda source: source.id)
    tuned = _tuned(settings, manifest.scenarios)
    edits = preflight.resolve_edits(sources, manifest.scenarios, tuned)
    if settings.suite_mode != "calibrate-only":
        preflight.check_selected(edits)
    preflight.check_edits_fit(sources, edits)
    placed = zip(sources, share_out(sources, places(settings, home, devices), settings), strict=True)
    models = tuple(_model(source, place, count, settings, edits) for source, (place, count) in placed)
    space_of = {source.id: partial(_variant_gb, source, settings=settings) for source in sources}
    steps = [
        step
        for model in models
        for step in _model_steps(model, manifest.scenarios, edits, settings, space_of[model.id])
    ]
    plan = CampaignPlan(
        suite=settings.suite,
        created_at=now,
        evpack_version=__version__,
        settings_digest=whole.digest(),
        policy_overrides=overrides,
        models=models,
        scenarios=manifest.scenarios,
        steps=(*steps, *_closing_steps(settings)),
    )
    documents = {
        "settings.json": whole.to_json(),
        "scenarios.json": manifest.to_json(),
        "tuned_edit_params.json": dict(tuned.document),
        "model_revisions.json": pins_document({source.id: source.pin for source in sources}, settings.suite, now),
        "policy.json": policy.to_json(),
    }
    if presets := reused_presets([model.name for model in models], settings, policy):
        documents["reused_presets.json"] = presets
    check_budget(plan, settings)
    space = tuple(
        _space(source, model, plan.steps_of(StepType.CREATE, model=model.name), settings)
        for source, model in zip(sources, models, strict=True)
    )
    return Draft(plan, documents, space, tuple(source.directory for source in sources), pins)


def check_draft(
    draft: Draft,
    run: RunDir,
    settings: Settings,
    check_source: preflight.CheckSource,
    check_pack: preflight.CheckPack | None = None,
) -> None:
    """The questions that need the run directory, the text or the pack.

    Raises:
        BadInput: directory not writable or in use, pack that could not be sealed, no space, text missing, unreadable
            or too short.
    """
    preflight.check_run_dir(run)
    if check_pack is not None:
        check_pack(settings, run)
    check_space(run.root, draft.space, settings)
    check_source(settings, draft.checkpoints)


def plan_campaign(
    run: RunDir,
    settings: Settings,
    home: Home,
    *,
    source_repo: Mapping[str, Any],
    check_source: preflight.CheckSource,
    check_pack: preflight.CheckPack | None = None,
    given: Collection[str] = (),
) -> CampaignPlan:
    """Plan a campaign into a run directory, or take up the plan that is there.

    Args:
        source_repo: provenance of the code (`pack.provenance`), stored as state/source_repo.json.
        check_source: see `preflight.CheckSource`.
        check_pack: see `preflight.CheckPack`; None when no pack will be built.
        given: names of settings that were set explicitly; on resume they must agree with the frozen ones.

    Raises:
        BadInput: before anything is written.
    """
    if run.plan.exists():
        return _resume(run, settings, given)
    if settings.resume is not None:
        raise BadInput(f"{run.root} holds no plan to resume", "give the run directory of a planned campaign")
    draft = build_plan(settings, home, utc_now())
    check_lanes(draft.plan, home.pools)
    check_draft(draft, run, settings, check_source, check_pack)
    state = run.plan.parent
    for name, value in {**draft.documents, "source_repo.json": dict(source_repo)}.items():
        write_json(state / name, value)
    if settings.net and draft.pins:
        store_pins(home, draft.pins, settings.suite, draft.plan.created_at)
    write_atomic(run.analysis / "memory_plan.csv", memory_plan(draft.plan, settings).encode())
    budget = variant_budget_gb(run.root, draft.space, settings)
    plan = draft.plan.model_copy(update={"variant_budget_gb": budget})
    write_json(run.plan, plan.to_json(), replace=False)
    return plan


def _resume(run: RunDir, settings: Settings, given: Collection[str]) -> CampaignPlan:
    plan = load_plan(run)
    frozen = Settings.parse(run.settings.read_bytes(), str(run.settings))
    if frozen.digest() != plan.settings_digest:
        raise BadInput(f"{run.settings} was changed after planning", "plan a new campaign in a new run directory")
    if not settings.resume_mode:
        raise BadInput(f"{run.root} holds a planned campaign and RESUME_MODE is false", "choose another OUTPUT_DIR")
    for name in sorted(set(given) - _LOCATION):
        was, now = getattr(frozen, name), getattr(settings, name)
        if was != now:
            raise BadInput(
                f"{run.root} was planned with {name}={was!r}; {now!r} contradicts it",
                f"leave {name} out, or plan a new campaign in a new run directory",
            )
    return plan


def _tuned(settings: Settings, scenarios: Sequence[Scenario]) -> TunedParams:
    """The tuned parameters, as far as they are needed: not without clean edits, and calibration can do without."""
    if not any(scenario.category is Category.CLEAN for scenario in scenarios):
        return TunedParams({})
    try:
        return load_tuned(settings.tuned_edit_params_file)
    except MissingFile:
        if settings.suite_mode == "calibrate-only":
            return TunedParams({})
        raise


def _model(
    source: Source, place: Place, count: int, settings: Settings, edits: Mapping[tuple[str, str], ResolvedEdit]
) -> ModelPlan:
    return ModelPlan(
        id=source.id,
        label=source.id.rsplit("/", 1)[-1],
        name=model_name(source.id),
        source=source.source,
        weights_gb=round(source.weights_gb, 3),
        devices=count,
        lane=lane_of(count, source.weights_gb, place.host).id,
        batch=settings.eval_batch,
        scoring_gb=round(scoring_gb(source.weights_gb, source.vocab, settings), 3),
        batch_edits=edits_share_a_pass(
            source.id,
            source.weights_gb,
            source.vocab,
            sum(model == source.id and edit.status == "selected" for (model, _), edit in edits.items()),
            settings,
            place.cpu_slots,
            count,
        ),
    )


def _variant_gb(source: Source, scenario: Scenario, settings: Settings) -> float:
    """Upper bound: a variant is never larger than the weights; one becomes full while its delta is still there."""
    full = settings.variant_storage == "full"
    if not isinstance(scenario.generation, ErrorGeneration):
        return source.weights_gb * (1 + full)
    tensors = None if full else FAULT_TENSORS[scenario.generation.error_type]
    delta = source.weights_gb if tensors is None else min(source.weights_gb, tensors * source.largest_tensor_gb)
    return delta * (1 + full)


def _space(source: Source, model: ModelPlan, create_steps: Sequence[StepPlan], settings: Settings) -> ModelSpace:
    edits = [step.variant_gb for step in create_steps if step.edit is not None]
    errors = [step.variant_gb for step in create_steps if step.edit is None]
    both = edits + errors
    return ModelSpace(
        source.weights_gb,
        source.arrives,
        edits_gb=sum(edits) if model.batch_edits else max(edits, default=0.0),
        errors_gb=max(errors, default=0.0),
        # Whole checkpoints lie beside their deltas one after the other.
        all_gb=(sum(both) + max(both, default=0.0)) / 2 if settings.variant_storage == "full" else sum(both),
    )


def check_budget(plan: CampaignPlan, settings: Settings) -> None:
    """Refuse a variant budget that a single create step would exceed.

    Raises:
        BadInput: naming model and space.
    """
    budget = settings.variant_budget_gb
    if budget is None:
        return
    if settings.keep_variants:
        raise BadInput(
            f"PACK_VARIANT_BUDGET_GB={budget:g} and PACK_KEEP_VARIANTS contradict each other",
            "variants that are kept give no space back: set one of the two",
        )
    for model in plan.models:
        steps = plan.steps_of(StepType.CREATE, model=model.name)
        need = max([step.variant_gb for step in steps], default=0.0)
        if model.batch_edits:
            need = max(need, sum(step.variant_gb for step in steps if step.edit is not None))
        if need > budget:
            raise BadInput(
                f"PACK_VARIANT_BUDGET_GB={budget:g}: one step of {model.label} may take {need:.3f} GB",
                "raise it" + (", or set PACK_USE_BATCH_EDITS=false" if model.batch_edits else ""),
            )


def _model_steps(
    model: ModelPlan,
    scenarios: Sequence[Scenario],
    edits: Mapping[tuple[str, str], Any],
    settings: Settings,
    variant_gb: Callable[[Scenario], float],
) -> list[StepPlan]:
    def step(type_: StepType, scenario: Scenario | None, needs: Sequence[StepPlan], runs: int = 0) -> StepPlan:
        return StepPlan(
            id=step_id(type_, model.name, scenario.id if scenario else None),
            type=type_,
            model=model.name,
            scenario=scenario.id if scenario else None,
            lane=model.lane,
            needs=tuple(need.id for need in needs),
            runs=tuple(range(1, runs + 1)),
            edit=edits.get((model.id, scenario.id)) if scenario and type_ is StepType.CREATE else None,
            variant_gb=round(variant_gb(scenario), 9) if scenario and type_ is StepType.CREATE else 0.0,
            timeout_s=settings.timeout_for(
                type_.reference_name(scenario.category if scenario else None, batch=model.batch_edits)
            ),
        )

    setup = step(StepType.SETUP_BASELINE, None, ())
    # Every run that an evaluation pairs with is scored here, once, also where presets are reused.
    calibrate = step(StepType.CALIBRATE, None, (setup,), settings.scheduled_runs)
    preset = step(StepType.DERIVE_PRESET, None, (calibrate,))
    steps = [setup, calibrate, preset]
    for scenario in scenarios:
        create = step(StepType.CREATE, scenario, (setup,))
        steps += [create, step(StepType.EVALUATE, scenario, (create, preset), runs_of(scenario, settings))]
    return steps


def _closing_steps(settings: Settings) -> list[StepPlan]:
    """compile_verdict needs nothing: it runs whatever happened and counts what is missing."""
    steps: list[StepPlan] = []
    for type_ in CLOSING:
        needs = tuple(step.id for step in steps[-1:])
        timeout = settings.timeout_for(type_.reference_name())
        steps.append(StepPlan(id=step_id(type_), type=type_, needs=needs, timeout_s=timeout))
    return steps

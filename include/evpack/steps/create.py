"""The create step: the variant of one scenario, edited or damaged, beside the baseline.

With batch edits, the first create step of a model to get at its edits makes all that are missing, in one pass; the
other steps wait for it and find theirs. Each step still vouches for its own variant with its own marker.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.scenarios import ErrorGeneration
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.full import to_full
from evpack.checkpoint.profile import open_baseline
from evpack.checkpoint.reader import Checkpoint
from evpack.data.windows import WindowSet
from evpack.edits import PreparedEdit, apply_edits
from evpack.errors import BrokenContract, CheckpointError, EvpackError, Transient
from evpack.faults import apply_fault
from evpack.plan.model import StepType
from evpack.publishing import AlreadyPublished, beside, locked, publishing, temporary
from evpack.rundir import ModelDir
from evpack.steps.base import StepContext, log


def create(ctx: StepContext) -> list[Path]:
    """Make the variant of the step's scenario, or find it made by the pass of another step.

    Returns:
        The variant's directory; nothing when the tuned parameters say that the edit is skipped.

    Raises:
        BadInput: for an edit or fault that cannot be made.
        CheckpointError: naming the tensor or shard at fault.
        DiskFull: when the device has no room.
        Transient: when another attempt published at the same moment.
    """
    step = ctx.step
    if step.model is None or step.scenario is None:
        raise BrokenContract(f"step {step.id} has no model or no scenario")
    if step.edit is not None and step.edit.status == "skipped":
        log.info("%s: skipped: %s", step.id, step.edit.reason)
        return []
    model = ctx.run.model(step.model)
    target = model.variant(step.scenario)
    baseline = open_baseline(model)
    try:
        if step.edit is None:
            _damaged(ctx, step.scenario, model, baseline)
        elif ctx.plan.model(step.model).batch_edits:
            with locked(target.parent):
                if _is_whole(ctx, baseline, target, step.scenario, step.edit):
                    log.info("%s: made already, in one pass with the model's other edits", step.id)
                else:
                    _edited(ctx, model, baseline, {step.scenario: step.edit, **_others(ctx, model)})
        else:
            _edited(ctx, model, baseline, {step.scenario: step.edit})
    except AlreadyPublished as error:
        raise Transient(f"{target} was published by another attempt", "try again") from error
    return [target]


def _damaged(ctx: StepContext, scenario: str, model: ModelDir, baseline: Checkpoint) -> None:
    target = model.variant(scenario)
    _discard(target)
    with publishing(target, str(ctx.attempt)) as directory:
        tokens = WindowSet.load(model.windows).tokens
        variant = apply_fault(baseline, _error_type(ctx, scenario), directory, scenario=scenario, tokens=tokens)
        _stored(ctx, variant, baseline)


def _edited(ctx: StepContext, model: ModelDir, baseline: Checkpoint, edits: Mapping[str, ResolvedEdit]) -> None:
    """Make and publish the variants of some edits in one pass.

    Args:
        edits: by scenario; the step's own comes first, and only its fault is raised.
    """
    own = next(iter(edits))
    _discard(model.variant(own))
    with beside(model.variant(own), "work") as workplace:
        places = {scenario: (edit, workplace / scenario) for scenario, edit in edits.items()}
        for _, directory in places.values():
            directory.mkdir()
        variants = apply_edits(baseline, places)
        for scenario, made in variants.items():
            if isinstance(made, EvpackError):
                if scenario != own:
                    log.warning("%s cannot be made, as its own step will tell: %s", scenario, made)
                continue
            _stored(ctx, made, baseline)
            with publishing(model.variant(scenario), str(ctx.attempt)) as directory:
                for file in made.path.iterdir():
                    file.rename(directory / file.name)
    if isinstance(fault := variants[own], EvpackError):
        raise fault


def _others(ctx: StepContext, model: ModelDir) -> dict[str, ResolvedEdit]:
    """The model's other edits that nobody has made yet; what is there is for its own step to judge."""
    return {
        step.scenario: step.edit
        for step in ctx.plan.steps
        if (step.type, step.model) == (StepType.CREATE, ctx.step.model)
        and step.scenario not in (None, ctx.step.scenario)
        and step.edit is not None
        and step.edit.status == "selected"
        and not model.variant(step.scenario).exists()
    }


def _stored(ctx: StepContext, variant: DeltaCheckpoint, baseline: Checkpoint) -> None:
    """Bring a fresh variant into the form that the settings want."""
    log.info("%s: %d tensors changed", variant.variant.scenario, len(variant.variant.changed))
    if left := variant.variant.metadata.get("unknown_matrices"):
        log.warning(
            "%s: the model's family is known in part only: %d matrices of these blocks are in no scope and stay as "
            "they are, the first %s",
            *(variant.variant.scenario, left["count"], left["first"][0]),
        )
    if ctx.settings.variant_storage == "full":
        to_full(variant, baseline)


def _is_whole(ctx: StepContext, baseline: Checkpoint, target: Path, scenario: str, edit: ResolvedEdit) -> bool:
    """Whether the variant is there, of this edit and baseline, in the form wanted, and every changed tensor sound."""
    if not target.exists():
        return False
    try:
        variant = DeltaCheckpoint(baseline, target)
        for name in variant.variant.changed:
            variant.read(name)
    except CheckpointError as error:
        log.warning("%s: made again: %s", target.name, error)
        return False
    of_this = (scenario, PreparedEdit(baseline, edit).declaration(), ctx.settings.variant_storage == "full")
    return (variant.variant.scenario, variant.variant.declaration, variant.is_full) == of_this


def _discard(target: Path) -> None:
    """Remove a variant that an attempt left without a completion marker: nothing says that it is whole."""
    if not target.exists():
        return
    aside = temporary(target, "discarded")
    target.rename(aside)
    shutil.rmtree(aside)


def _error_type(ctx: StepContext, scenario: str) -> str:
    generation = ctx.plan.scenario(scenario).generation
    if not isinstance(generation, ErrorGeneration):
        raise BrokenContract(f"step {ctx.step.id} has no edit although scenario {scenario!r} is one")
    return generation.error_type

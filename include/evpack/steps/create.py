"""The create step: the variant of one scenario, edited or damaged, as a delta beside the baseline."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from evpack.catalog.scenarios import ErrorGeneration
from evpack.checkpoint.profile import open_baseline
from evpack.data.windows import WindowSet
from evpack.edits import apply_edit
from evpack.errors import BrokenContract, Transient
from evpack.faults import apply_fault
from evpack.files import AlreadyPublished, publishing
from evpack.steps.base import StepContext, log


def create(ctx: StepContext) -> list[Path]:
    """Make the variant of the step's scenario.

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
    _discard(target)
    baseline = open_baseline(model)
    try:
        with publishing(target, str(ctx.attempt)) as directory:
            if step.edit is not None:
                variant = apply_edit(baseline, step.edit, directory, scenario=step.scenario)
            else:
                tokens = WindowSet.load(model.windows).tokens
                fault = _error_type(ctx, step.scenario)
                variant = apply_fault(baseline, fault, directory, scenario=step.scenario, tokens=tokens)
    except AlreadyPublished as error:
        raise Transient(f"{target} was published by another attempt", "try again") from error
    log.info("%s: %d tensors changed", step.id, len(variant.variant.changed))
    return [target]


def _discard(target: Path) -> None:
    """Remove a variant that an attempt left without a completion marker: nothing says that it is whole."""
    if not target.exists():
        return
    aside = target.with_name(f"{target.name}.tmp.discarded.{uuid.uuid4().hex}")
    target.rename(aside)
    shutil.rmtree(aside)


def _error_type(ctx: StepContext, scenario: str) -> str:
    generation = ctx.plan.scenario(scenario).generation
    if not isinstance(generation, ErrorGeneration):
        raise BrokenContract(f"step {ctx.step.id} has no edit although scenario {scenario!r} is one")
    return generation.error_type

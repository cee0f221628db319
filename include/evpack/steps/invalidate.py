"""Taking back finished steps: the next resume redoes them and everything that was made from them."""

from __future__ import annotations

import uuid

from evpack.errors import BadInput
from evpack.plan.model import CampaignPlan
from evpack.rundir import RunDir
from evpack.steps.runner import ALWAYS_RUN
from evpack.steps.state import archive_outputs, read_marker, running_step


def invalidate(run: RunDir, plan: CampaignPlan, step_id: str) -> list[str]:
    """Move markers and results of a step, and of all steps that depend on it, to archive/.

    Verdict, pack and verification depend on every step; of them only the markers move: they are made anew anyway.

    Returns:
        Ids of the steps that were finished and no longer are, in plan order.

    Raises:
        BadInput: for a step that the plan does not have, or while a step of the campaign runs.
    """
    affected = dependents(plan, step_id)
    if running := running_step(run, plan):
        raise BadInput(f"step {running} of {run.root} is running", "wait for the end of the campaign, or stop it")
    taken = []
    for name in affected:
        path, marker = run.marker(name), read_marker(run, name)
        if not path.is_file():
            continue
        if marker is None or plan.step(name).type in ALWAYS_RUN:
            target = run.archive / name / f"invalidated-{uuid.uuid4().hex[:8]}"
            target.mkdir(parents=True)
            path.replace(target / "marker.json")
        else:
            archive_outputs(run, marker)
        taken.append(name)
    return taken


def dependents(plan: CampaignPlan, step_id: str) -> list[str]:
    """A step and all that must be redone with it, in plan order.

    Raises:
        BadInput: for a step that the plan does not have.
    """
    found = {plan.step(step_id).id}
    for step in plan.steps:  # a step stands behind its needs
        if step.type in ALWAYS_RUN or found.intersection(step.needs):
            found.add(step.id)
    return [step.id for step in plan.steps if step.id in found]

"""How many threads a step computes with, so that the steps that may run beside each other share the cores."""

from __future__ import annotations

from evpack.plan.model import CampaignPlan, StepType
from evpack.processes import cores
from evpack.rundir import RunDir
from evpack.runtime.pools import cpu_slots
from evpack.settings import Settings


def threads_for(plan: CampaignPlan, step_type: StepType) -> int:
    """Threads per step: the cores shared out over the steps of this type that may run at once, at least one.

    A campaign of one model calibrates alone and gets all cores; its cells are evaluated side by side.
    """
    width = min(cpu_slots(), len(plan.steps_of(step_type)) or 1)
    return max(1, cores() // width)


def frozen_settings(run: RunDir) -> Settings:
    """The settings that `plan` froze."""
    return Settings.parse(run.settings.read_bytes(), str(run.settings))

"""How many threads a step computes with, so that the steps that may run beside each other share the cores."""

from __future__ import annotations

from evpack.plan.hosts import chosen_hosts
from evpack.plan.lanes import host_of
from evpack.plan.model import CampaignPlan, StepPlan
from evpack.processes import cores
from evpack.rundir import RunDir
from evpack.runtime.pools import cpu_slots
from evpack.settings import Settings


def threads_for(plan: CampaignPlan, step: StepPlan) -> int:
    """Threads of a step: the cores shared out over the steps of its type that may run at once on its host; never 0.

    A campaign of one model calibrates alone and gets all cores; its cells are evaluated side by side.
    """
    host = host_of(step.lane)
    slots = next((listed.cpu_slots for listed in chosen_hosts() if listed.name == host), cpu_slots())
    beside = sum(host_of(other.lane) == host for other in plan.steps_of(step.type))
    return max(1, cores() // max(1, min(slots, beside)))


def frozen_settings(run: RunDir) -> Settings:
    """The settings that `plan` froze."""
    return Settings.parse(run.settings.read_bytes(), str(run.settings))

"""What the mapped groups of a lane are expanded over: short references into the plan, in priority order."""

from __future__ import annotations

from evpack.plan.model import CampaignPlan, StepType

Item = dict[str, str]
"""``{subject, label}``: the part of a step id before its type, and the same for people."""

SEPARATOR = " · "


def used_lanes(plan: CampaignPlan) -> list[str]:
    """Ids of the lanes that have models, in plan order."""
    return list(dict.fromkeys(model.lane for model in plan.models))


def model_items(plan: CampaignPlan, lane: str) -> list[Item]:
    """One item per model of the lane."""
    return [{"subject": model.name, "label": model.label} for model in plan.models if model.lane == lane]


def cell_items(plan: CampaignPlan, lane: str) -> list[Item]:
    """One item per model x scenario of the lane, in the order of the plan's evaluate steps."""
    return [
        {
            "subject": f"{step.model}.{step.scenario}",
            "label": f"{plan.model(step.model or '').label}{SEPARATOR}{step.scenario}",
        }
        for step in plan.steps_of(StepType.EVALUATE, lane=lane)
    ]

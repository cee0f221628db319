"""Which names a pack of a campaign may hold: those that its plan gives a place, and no other.

Steps may add JSON beside reports and calibration runs, to the analysis and to the presets: in these directories every
file of that kind has a place; it is covered by checksums only until a rule of `recheck_*` interprets it.
"""

from __future__ import annotations

from collections.abc import Iterator

from evpack.pack import layout
from evpack.pack.evidence import Campaign
from evpack.plan.model import CampaignPlan, StepType

_EVERY = (
    *(layout.README, layout.VERDICT, layout.VERDICT_TEXT, layout.VERIFICATION, layout.PAGE, *layout.SUMMARIES),
    *(layout.PLAN, layout.LANE_CHANGES, layout.SETTINGS, layout.POLICY, layout.SCENARIOS, layout.TUNED),
    *(layout.REVISIONS, layout.SOURCE, layout.ENVIRONMENT),
)
"""Names in a pack of every campaign."""
_ANY = "*"
"""Stands for any name in a directory."""


def strangers(campaign: Campaign) -> list[str]:
    """Files of a pack that have no place in it, sorted."""
    places = {campaign.at(name) for name in (*_EVERY, *_of_plan(campaign.plan))} | campaign.layout.control()
    return sorted(name for name in campaign.files if places.isdisjoint((name, _any_of(name))))


def _any_of(name: str) -> str:
    """The place of any file of a name's directory and kind."""
    directory, slash, last = name.rpartition("/")
    return f"{directory}{slash}{_ANY}.{last.rpartition('.')[2]}"


def _of_plan(plan: CampaignPlan) -> Iterator[str]:
    yield from (f"results/{_ANY}.json", f"state/presets/{_ANY}.json", f"state/presets/{_ANY}.yaml")
    for model in plan.models:
        yield from (layout.model_state(model.name, name) for name in ("model_profile.json", "schedule.json"))
        yield f"reports/{model.name}/calibration/{_ANY}.json"
        for step in plan.steps_of(StepType.CALIBRATE, model=model.name):
            yield from (f"reports/{model.name}/calibration/run_{run}/{_ANY}.json" for run in step.runs)
        for step in plan.steps_of(StepType.EVALUATE, model=model.name):
            scenario = plan.scenario(str(step.scenario))
            yield layout.model_state(model.name, f"variants/{scenario.id}.json")
            for run in step.runs:
                target = layout.report_dir(model.name, scenario.id, scenario.category, run)
                yield from (f"{target}/{_ANY}.json", f"{target}/{layout.REPORT_PAGE}")

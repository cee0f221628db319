"""analysis/timeline.svg: the attempts of a campaign over devices and processor slots."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from evpack.plan.model import CampaignPlan, StepPlan
from evpack.publishing import write_atomic
from evpack.render.timeline import Bar, timeline
from evpack.rundir import RunDir
from evpack.steps.state import read_attempts

TIMELINE_NAME = "timeline.svg"


def write_timeline(run: RunDir, plan: CampaignPlan) -> None:
    """Draw what the attempt records say; in place of an earlier picture.

    Raises:
        DiskFull: when there is no room for it.
    """
    write_atomic(run.analysis / TIMELINE_NAME, timeline(attempt_bars(run, plan)).encode("utf-8"))


def attempt_bars(run: RunDir, plan: CampaignPlan) -> list[Bar]:
    """A bar for every attempt that ended, in the order of the plan's steps; on devices from when it held them."""
    bars = []
    for step in plan.steps:
        label = plan.model(step.model).label if step.model else None
        bars += [_bar(step, label, record) for record in read_attempts(run, step.id) if record["ended_at"]]
    return bars


def _bar(step: StepPlan, label: str | None, record: dict[str, Any]) -> Bar:
    start = record.get("started_unix") or datetime.fromisoformat(record["started_at"]).timestamp()
    if record["seconds"] is not None:
        end = start + record["seconds"]
    else:  # killed: somebody else wrote down its end
        end = max(start, datetime.fromisoformat(record["ended_at"]).timestamp())
    leased = record["leased"] or {}
    return Bar(
        step=step.id,
        kind=step.type.value,
        model=label,
        start=start + leased.get("waited_s", 0.0),
        end=end,
        devices=tuple(leased.get("devices", ())),
        failed=record["class"] != "ok",
    )

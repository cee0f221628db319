"""What a resume does about models that ran out of memory: it moves them to the next lane, or says why it cannot."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from evpack.errors import BadInput, EvpackError
from evpack.files import utc_now, write_json
from evpack.home import Home
from evpack.plan.lane_changes import LaneChange, LaneChanges
from evpack.plan.lanes import DEVICE_COUNTS, host_of, next_lane
from evpack.plan.memory import SCORING, check_lanes, devices_of, memory_plan
from evpack.plan.model import CampaignPlan, ModelPlan, StepPlan
from evpack.plan.placement import place_named
from evpack.publishing import write_atomic
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps import state

log = logging.getLogger(__name__)

_SMALLER = "plan a new campaign with a lower INVARLOCK_EVAL_BATCH or INVARLOCK_SEQ_LEN"


@dataclass(frozen=True)
class Shortage:
    """A model of which a step ran out of memory, with no smaller batch left to try."""

    step: str
    """Id of the step."""
    change: LaneChange | None = None
    """What a resume does about it."""
    stays: EvpackError | None = None
    """Why it can do nothing, and how that can be mended."""

    def text(self) -> str:
        """For people."""
        if self.change is not None:
            return f"{self.step} ran out of memory; the next resume moves its model to lane {self.change.to_lane}"
        reason = self.stays.diagnostics() if self.stays else ""
        return f"{self.step} ran out of memory with its smallest batch and has no next lane: {reason}"


def replan(run: RunDir, plan: CampaignPlan, home: Home, dag_run: str | None) -> CampaignPlan:
    """Move each model that ran out of memory to the next lane, if the host has one; the plan as it is from now on.

    Finished steps stay as they are: no input digest changes. state/lane_changes.json is written before anything else.

    Args:
        dag_run: id of the DAG run that resumes, None when there is none.
    """
    found = shortages(run, plan, home, dag_run)
    for shortage in found:
        log.warning("%s", shortage.change.text() if shortage.change else shortage.text())
    changes = [shortage.change for shortage in found if shortage.change]
    if not changes:
        return plan
    moved = plan.moved(changes)
    document = LaneChanges(plan_digest=plan.digest(), changes=moved.lane_changes)
    write_json(run.lane_changes, document.to_json())
    write_atomic(run.analysis / "memory_plan.csv", memory_plan(moved, _frozen_settings(run)).encode())
    return moved


def shortages(run: RunDir, plan: CampaignPlan, home: Home, dag_run: str | None = None) -> list[Shortage]:
    """The models that ran out of memory, in plan order, and what a resume now would do about each."""
    found = []
    for model in plan.models:
        steps = [step for step in plan.steps if step.model == model.name and state.out_of_memory(run, plan, step)]
        # First those that more devices may help.
        steps.sort(key=lambda step: (step.type not in SCORING, state.lacked_host_memory(run, step.id)))
        if not steps:
            continue
        try:
            change = _next_change(run, plan, model, steps[0], home, dag_run)
        except EvpackError as problem:
            found.append(Shortage(steps[0].id, stays=problem))
        else:
            plan = plan.moved([change])
            found.append(Shortage(steps[0].id, change))
    return found


def _next_change(
    run: RunDir, plan: CampaignPlan, model: ModelPlan, step: StepPlan, home: Home, dag_run: str | None
) -> LaneChange:
    """The change that gives a step the next larger number of devices.

    Raises:
        EvpackError: why there is none, and the mend.
    """
    if devices_of(plan, step) == 0:
        mend = f"{_SMALLER}, or resume" if step.type in SCORING else "resume"
        raise BadInput(
            "it computes on the processor, so there are no devices to add", f"{mend} on a host with more memory"
        )
    if state.lacked_host_memory(run, step.id):
        raise BadInput(
            "it lacked the host's memory, to which devices do not add",
            f"{_SMALLER}, or resume with more memory (EVPACK_CONTAINER_MEMORY_GB, another host)",
        )
    host = place_named(_frozen_settings(run), home, host_of(model.lane)).devices.count
    lane = next_lane(model.lane, host)
    if lane is None:
        raise BadInput(
            f"its model has {model.devices} devices, this host gives the campaign {host}, and lanes have "
            f"{', '.join(map(str, DEVICE_COUNTS[1:]))}",
            f"{_SMALLER}, or resume on a host with more or larger devices",
        )
    own = [other.id for other in plan.steps if other.model == model.name]
    if running := [other for other in own if state.step_state(run, other) == "running"]:
        raise BadInput(f"{running[0]} is running", "resume the campaign when it has ended")
    change = LaneChange(
        model=model.name,
        from_lane=model.lane,
        to_lane=lane.id,
        step=step.id,
        batch=state.lowered_batch(run, plan, step) or model.batch,
        changed_at=utc_now(),
        dag_run=dag_run,
    )
    check_lanes(plan.moved([change]), home.pools)
    return change


def _frozen_settings(run: RunDir) -> Settings:
    return Settings.parse(run.settings.read_bytes(), str(run.settings))

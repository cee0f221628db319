"""What must hold of a campaign as Airflow and the attempt records tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import combinations
from typing import Any

from evpack.airflow.weights import task_weight
from evpack.files import read_json
from evpack.plan.model import CampaignPlan, StepType, load_plan
from evpack.rundir import RunDir
from evpack.runtime.threads import frozen_settings
from evpack.steps.timeline import attempt_bars
from studies.scheduling.durations import measured
from studies.scheduling.simulator import Simulation, Span
from studies.scheduling.tasks import Duration, Task, airflow_tasks

TIED_S = 1.0
"""What became ready this short a time before another task was chosen may have missed that choice."""

Steps = Sequence[Mapping[str, Any]]
"""Task instances of steps, as the REST API gives them."""


def moment(task: Mapping[str, Any], name: str) -> float:
    return datetime.fromisoformat(task[name]).timestamp()


def ran(steps: Steps) -> list[Mapping[str, Any]]:
    return [task for task in steps if task["queued_when"]]


def rank(task: Mapping[str, Any]) -> tuple[int, str, int]:
    """Airflow's order: weight, age of the run, place in the list; the smallest goes first."""
    return (-task["priority_weight"], task["logical_date"], task["map_index"])


def check_weights(steps: Steps, order: str) -> None:
    """The weights that Airflow shows are those of the run's order."""
    for task in ran(steps):
        assert task["priority_weight"] == task_weight(task["task_id"], task["map_index"], order), task["task_id"]


def check_order(steps: Steps) -> None:
    """Nothing was chosen while something waited for the same pool that goes before it and needs no more slots."""
    for chosen in ran(steps):
        at = moment(chosen, "queued_when")
        for other in ran(steps):
            before = other["pool"] == chosen["pool"] and rank(other) < rank(chosen)
            if before and other["pool_slots"] <= chosen["pool_slots"]:
                waited = moment(other, "scheduled_when") + TIED_S < at < moment(other, "queued_when")
                assert not waited, f"{chosen['task_id']}[{chosen['map_index']}] passed {other['task_id']}"


def check_fairness(steps: Mapping[str, Steps]) -> None:
    """Campaigns that run at once all get devices before any of them is done."""
    starts = {
        name: sorted(moment(task, "queued_when") for task in ran(found) if task["task_id"].endswith("evaluate"))
        for name, found in steps.items()
    }
    assert max(times[0] for times in starts.values()) < min(times[-1] for times in starts.values())


def check_pools(steps: Steps, slots: Mapping[str, int]) -> int:
    """No pool gave more slots than it has, from being chosen to the end; the most of `gpu` that were in use at once."""
    most = 0
    for task in ran(steps):
        at = moment(task, "queued_when")
        beside = [t for t in ran(steps) if moment(t, "queued_when") <= at < moment(t, "end_date")]
        for pool, count in slots.items():
            used = sum(t["pool_slots"] for t in beside if t["pool"] == pool)
            assert used <= count, f"{used} slots of {pool} at {task['queued_when']}"
            most = max(most, used) if pool == "gpu" else most
    return most


def check_devices(runs: Sequence[RunDir]) -> None:
    """Every step on devices held as many as its model needs, and no device was held twice, over all campaigns."""
    held: dict[str, list[tuple[float, float, str]]] = {}
    for run in runs:
        plan = load_plan(run)
        for bar in attempt_bars(run, plan):
            assert len(set(bar.devices)) == len(bar.devices) == devices_of_bar(plan, bar.step), bar
            witness = read_json(run.root / "sham" / bar.step) if bar.devices else {}
            for device in bar.devices:  # an attempt writes its books after it gave its devices back
                held.setdefault(device, []).append((witness["begin"], witness["end"], bar.step))
    for device, spans in held.items():
        for (_, end, one), (start, _, other) in zip(sorted(spans), sorted(spans)[1:], strict=False):
            assert end <= start, f"{device} is held by {one} and {other}"


def devices_of_bar(plan: CampaignPlan, step_id: str) -> int:
    from evpack.plan.memory import devices_of

    return devices_of(plan, plan.step(step_id))


def of_run(tasks: Iterable[Task], run: str, age: int) -> list[Task]:
    """The same tasks as part of one of several DAG runs."""
    return [
        replace(
            task,
            id=f"{run}/{task.id}",
            needs=frozenset(f"{run}/{need}" for need in task.needs),
            duration=replace(task.duration, shared=f"{run}/{task.duration.shared}" if task.duration.shared else None),
            age=age,
        )
        for task in tasks
    ]


def simulated(
    runs: Sequence[RunDir], steps: Mapping[str, Steps], slots: Mapping[str, int], *, together: bool = False
) -> list[Span]:
    """The same campaigns in the simulator, with the durations that were measured and the mean overhead of a task.

    Args:
        together: whether they evaluated together (`together_step`): what a preset waited for is then no work.
    """
    tasks, overheads = [], []
    for age, run in enumerate(runs):
        plan = load_plan(run)
        durations = measured(run, plan)
        name = run.root.name
        tasks += of_run(airflow_tasks(plan, durations, frozen_settings(run).order), name, age)
        for task, step_id in zip(ran(steps[name]), step_ids(plan, ran(steps[name])), strict=True):
            took = moment(task, "end_date") - moment(task, "queued_when")
            overheads.append(took - durations(plan.step(step_id)).seconds)
    if together:
        ready = frozenset(task.id for task in tasks if task.type in (StepType.CREATE, StepType.DERIVE_PRESET))
        tasks = [replace(task, duration=Duration(0)) if task.type is StepType.DERIVE_PRESET else task for task in tasks]
        tasks = [replace(task, needs=task.needs | ready) if task.type is StepType.EVALUATE else task for task in tasks]
    return Simulation(tasks, slots, overhead_s=sum(overheads) / len(overheads)).run()


def step_ids(plan: CampaignPlan, steps: Steps) -> list[str]:
    """The step that each task instance ran."""
    from evpack.airflow.items import cell_items, model_items

    found = []
    for task in steps:
        lane, group, type_ = task["task_id"].split(".")
        items = (model_items if group == "models" else cell_items)(plan, lane)
        found.append(f"{items[task['map_index']]['subject']}.{type_}")
    return found


def agreement(real: Mapping[str, float], other: Mapping[str, float], tied: float) -> float:
    """Share of pairs that start in the same order, of those further apart than `tied` seconds in both."""
    same = total = 0
    for a, b in combinations(sorted(real), 2):
        one, two = real[a] - real[b], other[a] - other[b]
        if min(abs(one), abs(two)) > tied:
            total += 1
            same += (one > 0) == (two > 0)
    return same / total if total else 1.0

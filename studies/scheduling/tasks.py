"""What Airflow has to schedule for a plan: the instances of the campaign's DAG with weight, pool and needs.

Lists, their order and weights come from the code that the DAG uses (`airflow.items`, `airflow.weights`, `plan.order`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evpack.airflow.items import cell_items, model_items, used_lanes
from evpack.airflow.weights import task_weight
from evpack.plan.lanes import lane_named
from evpack.plan.memory import SCORING, devices_of
from evpack.plan.model import CampaignPlan, StepPlan, StepType, step_id
from evpack.plan.order import SMALL_FIRST, priority

GPU, CPU, DEFAULT = "gpu", "cpu", "default_pool"
DEFAULT_SLOTS = 128
"""Slots of Airflow's own pool, in which plan, selections, verdict and pack run."""

GROUPS = {
    "models": (StepType.SETUP_BASELINE, StepType.CALIBRATE, StepType.DERIVE_PRESET),
    "cells": (StepType.CREATE, StepType.EVALUATE),
}


@dataclass(frozen=True)
class Duration:
    """Seconds that a step takes."""

    seconds: float
    shared: str | None = None
    """Name of work that the first of several steps does for all (one pass for all edits of a model)."""
    shared_s: float = 0.0
    """Seconds of that work; a step that comes later waits for its end."""


Durations = Callable[[StepPlan], Duration]


@dataclass(frozen=True)
class Task:
    """One task instance."""

    id: str
    """Step id, with ``<run>/`` before it where several campaigns run."""
    dag_task: str
    """Task id in the DAG: what Airflow calls starving."""
    map_index: int
    weight: int
    pool: str
    slots: int
    needs: frozenset[str]
    duration: Duration
    type: StepType
    model: str | None = None
    devices: int = 0
    """Devices it computes on; they are slots of `gpu` in this project."""
    age: int = 0
    """Place of its run by logical date."""


def airflow_tasks(plan: CampaignPlan, durations: Durations, order: str = SMALL_FIRST) -> list[Task]:
    """The step instances of a campaign, lane by lane. plan, selections and gate are left out: they take no pool."""
    tasks: list[Task] = []
    for lane in used_lanes(plan):
        tasks += _lane_tasks(plan, lane, durations, order)
    evaluations = frozenset(task.id for task in tasks if task.type is StepType.EVALUATE)
    needs = evaluations
    for type_ in (StepType.COMPILE_VERDICT, StepType.BUILD_PACK, StepType.VERIFY_PACK):
        step = plan.step(step_id(type_))
        weight = priority(type_, None, -1)
        tasks.append(Task(step.id, step.id, -1, weight, DEFAULT, 1, needs, durations(step), type_))
        needs = frozenset({step.id})
    return tasks


def _lane_tasks(plan: CampaignPlan, lane_id: str, durations: Durations, order: str) -> list[Task]:
    """The two mapped groups of a lane. create waits for every baseline of the lane, evaluate for every preset."""
    (lane,) = filter(None, [lane_named(lane_id)])
    items = {"models": model_items(plan, lane_id), "cells": cell_items(plan, lane_id)}

    def ids(group: str, type_: StepType) -> frozenset[str]:
        return frozenset(f"{item['subject']}.{type_}" for item in items[group])

    barrier = {
        StepType.CREATE: ids("models", StepType.SETUP_BASELINE),
        StepType.EVALUATE: ids("models", StepType.DERIVE_PRESET),
    }
    tasks = []
    for group, types in GROUPS.items():
        for index, item in enumerate(items[group]):
            before: frozenset[str] = frozenset()
            for type_ in types:
                step = plan.step(f"{item['subject']}.{type_}")
                on_device = type_ in SCORING
                dag_task = f"{lane_id}.{group}.{type_}"
                tasks.append(
                    Task(
                        id=step.id,
                        dag_task=dag_task,
                        map_index=index,
                        weight=task_weight(dag_task, index, order),
                        pool=lane.pool if on_device else lane.cpu_pool,
                        slots=lane.pool_slots if on_device else 1,
                        needs=before | barrier.get(type_, frozenset()),
                        duration=durations(step),
                        type=type_,
                        model=step.model,
                        devices=devices_of(plan, step),
                    )
                )
                before = frozenset({step.id})
    return tasks

"""What no schedule can beat, and the figures of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evpack.plan.model import StepType
from studies.scheduling.simulator import Span
from studies.scheduling.tasks import Task


@dataclass(frozen=True)
class Figures:
    """A schedule in numbers, seconds."""

    makespan_s: float
    first_model_s: float
    """When the first model had all its evaluations."""
    mean_model_s: float
    """The same, mean over the models."""
    utilisation: float
    """Share of the devices' time until the last evaluation in which a step held them."""


def figures(spans: Sequence[Span], devices: int) -> Figures:
    """The figures of a schedule on so many devices."""
    ends: dict[str, float] = {}
    for span in spans:
        if span.task.type is StepType.EVALUATE and span.task.model:
            ends[span.task.model] = max(ends.get(span.task.model, 0.0), span.end)
    busy = sum((span.end - span.start) * span.task.devices for span in spans)
    return Figures(
        makespan_s=max(span.end for span in spans),
        first_model_s=min(ends.values()),
        mean_model_s=sum(ends.values()) / len(ends),
        utilisation=busy / (devices * max(ends.values())) if devices else 0.0,
    )


def lower_bound(tasks: Sequence[Task], devices: int, overhead_s: float) -> float:
    """max(work on devices / devices, longest chain of steps that wait for each other), seconds.

    A chain counts only what a step really needs: barriers of the DAG are no part of the problem.
    """
    work = sum((task.duration.seconds + overhead_s) * task.devices for task in tasks)
    return max(work / max(devices, 1), longest_chain(tasks, overhead_s))


def longest_chain(tasks: Sequence[Task], overhead_s: float) -> float:
    """Seconds of the longest path, where a step waits for the steps of its own model and scenario only."""
    known = {task.id: task for task in tasks}
    ends: dict[str, float] = {}

    def end(task_id: str) -> float:
        if task_id not in ends:
            task = known[task_id]
            own = [need for need in task.needs if _belongs(task, known[need])]
            start = max((end(need) for need in own), default=0.0)
            ends[task_id] = start + task.duration.seconds + task.duration.shared_s + overhead_s
        return ends[task_id]

    return max(end(task_id) for task_id in known)


def _belongs(task: Task, need: Task) -> bool:
    return task.model is None or need.model == task.model

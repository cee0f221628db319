"""The reference's scheduling, for comparison: its task graph, clamped priorities, monitor and work stealing.

From the scheduling spec, sections 2 to 6. Every task is run by the worker of a device and holds as many as its planned
memory needs; only the monitor, once a minute, makes tasks ready. Durations are those of this project's steps, cut into
the reference's tasks (every run loads its model again). Its KV cache, which scoring never keeps, is not planned for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.settings import Settings
from studies.scheduling.durations import Durations
from studies.scheduling.simulator import Moment
from studies.scheduling.tasks import GPU, Duration, Task

MONITOR_S = 60.0
"""Seconds between two rounds of the monitor."""
STEAL = 15
STEAL_BELOW_GB = 120.0
STEAL_BELOW_PRIORITY = 95
BASE = {
    "SETUP_BASELINE": 90,
    "CALIBRATION_RUN": 85,
    "GENERATE_PRESET": 75,
    "CREATE_EDITS_BATCH": 70,
    "CREATE_EDIT": 70,
    "EVALUATE_EDIT": 65,
    "CREATE_ERROR": 60,
    "EVALUATE_ERROR": 55,
}
CRITICAL = {"SETUP_BASELINE": 50, "CALIBRATION_RUN": 20}


@dataclass(frozen=True)
class Reckoning:
    """What the priorities of the reference are reckoned from."""

    kind: str
    """The reference's task type."""
    planned_gb: float


class Reference:
    """The reference's graph of a plan, and its rule.

    Args:
        loading: seconds until a model can score, by model directory name.
        device_gb: memory of one device.
    """

    def __init__(
        self,
        plan: CampaignPlan,
        settings: Settings,
        durations: Durations,
        loading: dict[str, float],
        device_gb: float,
        devices: int,
    ) -> None:
        self._plan, self._settings, self._durations, self._loading = plan, settings, durations, loading
        self._device_gb, self._devices = device_gb, devices
        self._reckoning: dict[str, Reckoning] = {}
        self.tasks = list(self._graph())
        self._base = {task.id: float(BASE[self._reckoning[task.id].kind]) for task in self.tasks}
        self._by_id = {task.id: task for task in self.tasks}
        self._stolen_at = 0.0

    def __call__(self, moment: Moment) -> list[Task]:
        """The tasks that workers of free devices claim now: the highest priority that fits, again and again."""
        if moment.now >= self._stolen_at + MONITOR_S:
            self._stolen_at = moment.now
            self._steal(moment)
        free, started = moment.open_slots[GPU], []
        running = Counter(task.model for task in moment.running)
        pending = self._pending_dependents(moment)
        waiting = sorted(moment.waiting, key=lambda task: task.id)
        while fitting := [task for task in waiting if task.devices <= free]:
            best = max(fitting, key=lambda task: self._priority(task, moment.now, running, pending))
            waiting.remove(best)
            started.append(best)
            free -= best.devices
            running[best.model] += 1
        return started

    def _priority(self, task: Task, now: float, running: Counter[str | None], pending: Counter[str]) -> float:
        reckoning = self._reckoning[task.id]
        value = self._base[task.id] + CRITICAL.get(reckoning.kind, 0) + _size_boost(reckoning.planned_gb)
        value += min(2 * pending[task.id], 40) + min(now // 60 // 5, 10) - min(3 * running[task.model], 15)
        return max(0.0, min(100.0, value))

    def _pending_dependents(self, moment: Moment) -> Counter[str]:
        started = {task.id for task in (*moment.waiting, *moment.running)} | moment.done
        return Counter(need for task in self.tasks if task.id not in started for need in task.needs)

    def _steal(self, moment: Moment) -> None:
        """Raise the stored priority of models that lag more than ten points behind the mean."""
        totals = Counter(task.model for task in self.tasks)
        done = Counter(self._by_id[task_id].model for task_id in moment.done)
        rates = {model: done[model] * 100 // total for model, total in totals.items()}
        mean = sum(rates.values()) / len(rates)
        busy = {task.id for task in moment.running} | moment.done
        for task in self.tasks:
            low = self._base[task.id] < STEAL_BELOW_PRIORITY
            small = self._reckoning[task.id].planned_gb < STEAL_BELOW_GB
            if rates[task.model] < mean - 10 and task.id not in busy and low and small:
                self._base[task.id] = min(100.0, self._base[task.id] + STEAL)

    def _graph(self) -> Iterator[Task]:
        for model in self._plan.models:
            setup = self._plan.steps_of(StepType.SETUP_BASELINE, model=model.name)[0]
            calibrate = self._plan.steps_of(StepType.CALIBRATE, model=model.name)[0]
            preset = self._plan.steps_of(StepType.DERIVE_PRESET, model=model.name)[0]
            yield self._task(setup, setup.id, (), self._durations(setup))
            runs = [f"{calibrate.id}.{run}" for run in calibrate.runs]
            for run_id in runs:
                yield self._task(calibrate, run_id, (setup.id,), self._one_run(calibrate))
            yield self._task(preset, preset.id, runs, self._durations(preset))
            yield from self._cells(model.name, model.batch_edits, setup.id, preset.id)

    def _cells(self, model: str, batch: bool, setup: str, preset: str) -> Iterator[Task]:
        pass_id = f"{model}.CREATE_EDITS_BATCH"
        made = False
        evaluations = {step.scenario: step for step in self._plan.steps_of(StepType.EVALUATE, model=model)}
        for create in self._plan.steps_of(StepType.CREATE, model=model):
            together = batch and create.edit is not None
            create_id = pass_id if together else create.id
            if not together or not made:
                duration = self._durations(create)
                seconds = duration.shared_s if together else duration.seconds
                yield self._task(create, create_id, (setup,), Duration(seconds))
                made = made or together
            evaluate = evaluations[create.scenario]
            for run in evaluate.runs:
                yield self._task(evaluate, f"{evaluate.id}.{run}", (create_id, preset), self._one_run(evaluate))

    def _one_run(self, step: StepPlan) -> Duration:
        loading = self._loading[step.model or ""]
        return Duration(loading + (self._durations(step).seconds - loading) / len(step.runs))

    def _task(self, step: StepPlan, task_id: str, needs: tuple[str, ...] | list[str], duration: Duration) -> Task:
        model = self._plan.model(step.model or "")
        category = self._plan.scenario(step.scenario).category if step.scenario else None
        kind = step.type.reference_name(category, batch=model.batch_edits)
        planned = self._planned_gb(kind, model.weights_gb, model.scoring_gb)
        devices = max(1, min(math.ceil(planned / self._device_gb), self._devices))
        self._reckoning[task_id] = Reckoning(kind, planned)
        return Task(
            id=task_id,
            dag_task=kind,
            map_index=0,
            weight=0,
            pool=GPU,
            slots=devices,
            needs=frozenset(needs),
            duration=replace(duration, shared=None, shared_s=0.0),
            type=step.type,
            model=step.model,
            devices=devices,
        )

    def _planned_gb(self, kind: str, weights: float, scoring: float) -> float:
        settings = self._settings
        if kind in ("CALIBRATION_RUN", "EVALUATE_EDIT", "EVALUATE_ERROR"):
            return scoring
        return {
            "SETUP_BASELINE": weights + settings.model_load_overhead_gb,
            "GENERATE_PRESET": 5.0,
            "CREATE_EDITS_BATCH": 2 * weights + settings.batch_edit_overhead_gb,
        }.get(kind, weights + settings.edit_overhead_gb)


def _size_boost(planned_gb: float) -> int:
    return 30 if planned_gb < 30 else 20 if planned_gb < 70 else 10 if planned_gb < 100 else 0

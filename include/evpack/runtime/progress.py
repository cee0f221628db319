"""How far a campaign is, from the markers and attempt records of its run directory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.rundir import RunDir
from evpack.steps.state import held_up, step_state

_MODEL_STEPS = (StepType.SETUP_BASELINE, StepType.CALIBRATE, StepType.DERIVE_PRESET)


@dataclass(frozen=True)
class ModelProgress:
    """One model of a campaign."""

    label: str
    preparation: str
    """State of what comes before the cells: ``calibrate running``, ``setup_baseline failed``, ``ready``."""
    cells: int
    done: int
    running: tuple[str, ...]
    """Cells at work: ``<scenario> (create|evaluate)``."""
    failed: tuple[str, ...]
    """Scenarios whose last attempt failed."""
    held_up: str | None = None
    """The first step that had to wait for devices or for room, and why."""

    @property
    def waiting(self) -> int:
        """Cells that have not started or wait for their next step."""
        return self.cells - self.done - len(self.running) - len(self.failed)


def read_progress(run: RunDir, plan: CampaignPlan) -> list[ModelProgress]:
    """The models of a plan in plan order."""
    return [_model(run, plan, model.name, model.label) for model in plan.models]


def _model(run: RunDir, plan: CampaignPlan, name: str, label: str) -> ModelProgress:
    cells: dict[str, list[StepPlan]] = {}
    for step in plan.steps:
        if step.model == name and step.scenario is not None:
            cells.setdefault(step.scenario, []).append(step)
    states = {scenario: _cell(run, steps) for scenario, steps in cells.items()}
    counts = Counter(state for state, _ in states.values())
    return ModelProgress(
        label=label,
        preparation=_preparation(run, plan, name),
        cells=len(cells),
        done=counts["done"],
        running=tuple(f"{scenario} ({what})" for scenario, (state, what) in states.items() if state == "running"),
        failed=tuple(scenario for scenario, (state, _) in states.items() if state == "failed"),
        held_up=next(filter(None, (_held_up(run, step) for step in plan.steps if step.model == name)), None),
    )


def _held_up(run: RunDir, step: StepPlan) -> str | None:
    reason = held_up(run, step.id)
    return f"{step.scenario or step.type} waits: {reason}" if reason else None


def _cell(run: RunDir, steps: Sequence[StepPlan]) -> tuple[str, str]:
    """State of a cell and the step type that gives it: its first step that is not done decides."""
    for step in steps:
        state = step_state(run, step.id)
        if state != "done":
            return state, step.type.value
    return "done", ""


def _preparation(run: RunDir, plan: CampaignPlan, name: str) -> str:
    for type_ in _MODEL_STEPS:
        for step in plan.steps_of(type_, model=name):
            state = step_state(run, step.id)
            if state != "done":
                return f"{type_} {state}"
    return "ready"


@dataclass
class Estimate:
    """Seconds until all cells are done, from the pace of the cells that finished while watching."""

    _first: tuple[float, int] | None = field(default=None)

    def update(self, models: Sequence[ModelProgress], now: float | None = None) -> float | None:
        """Seconds left, None while no cell has finished since one of a prepared model was seen at work."""
        moment = time.monotonic() if now is None else now
        done = sum(model.done for model in models)
        left = sum(model.cells for model in models) - done - sum(len(model.failed) for model in models)
        if self._first is None:
            if any(model.running and model.preparation == "ready" for model in models):
                self._first = (moment, done)
            return None
        since, before = self._first
        return left * (moment - since) / (done - before) if done > before else None

"""Small plans for tests that need one and not the planning behind it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evpack.files import write_json
from evpack.plan.model import CampaignPlan, ModelPlan, ModelSource, StepPlan
from evpack.rundir import RunDir
from evpack.settings import Settings

SOURCE = ModelSource(kind="local", path="/m")


def model_plan(name: str = "m", **changes: Any) -> ModelPlan:
    """A model of 1 GB in the processor's lane; `changes` go over that."""
    fields = {"source": SOURCE, "weights_gb": 1, "devices": 0, "lane": "cpu_s", "batch": 1}
    return ModelPlan.model_validate({"id": name, "label": name, "name": name} | fields | changes)


def campaign_plan(steps: Iterable[StepPlan], settings: Settings | None = None, **changes: Any) -> CampaignPlan:
    """A plan of one model and no scenarios; `changes` go over that."""
    fields: dict[str, Any] = {
        "suite": "test",
        "created_at": "2026-01-01T00:00:00Z",
        "evpack_version": "0",
        "settings_digest": (settings or Settings()).digest(),
        "models": (model_plan(),),
        "scenarios": (),
        "steps": tuple(steps),
    }
    return CampaignPlan(**fields | changes)


def planned_run(root: Path, steps: Iterable[StepPlan], settings: Settings, **changes: Any) -> RunDir:
    """A run directory with settings and such a plan, as `evpack plan` leaves it."""
    run = RunDir(root)
    write_json(run.settings, settings.to_json())
    write_json(run.plan, campaign_plan(steps, settings, **changes).to_json())
    return run

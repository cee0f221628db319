"""Pretended devices in a file, and the context of a step that needs some of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.home import Home
from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.plan.nvml import SIMULATED_ENV
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from tests.plans import campaign_plan, model_plan

Pretend = Callable[..., None]
MakeContext = Callable[..., StepContext]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Write the pretended devices: a count of healthy ones, or a mapping per device over `uuid` and 80 GB."""
    file = tmp_path / "gpus.json"
    monkeypatch.setenv(SIMULATED_ENV, str(file))

    def write(*devices: dict[str, Any], count: int = 0) -> None:
        rows = [*devices, *({} for _ in range(count))]
        named = [{"uuid": f"GPU-{index}", "memory_gb": 80, **row} for index, row in enumerate(rows)]
        file.write_text(json.dumps({"devices": named}))

    return write


def campaign(devices: int, scoring_gb: float, settings: Settings) -> CampaignPlan:
    lane = f"gpu{devices}_s" if devices else "cpu_s"
    model = model_plan(devices=devices, lane=lane, batch=4, scoring_gb=scoring_gb)
    step = StepPlan(id="m.calibrate", type=StepType.CALIBRATE, model="m", lane=lane)
    return campaign_plan([step], settings, models=(model,))


@pytest.fixture
def make_context(home: Home, tmp_path: Path) -> MakeContext:
    """The context of a calibrate step; keyword arguments are settings."""

    def make(devices: int = 1, scoring_gb: float = 7.0, **settings: Any) -> StepContext:
        frozen = Settings(**{"lease_wait": 0, "gpu_cache_ttl": 0, "min_free_disk_gb": 0, **settings})
        plan = campaign(devices, scoring_gb, frozen)
        return StepContext(RunDir(tmp_path / "run"), plan, frozen, plan.steps[0], home)

    return make

"""What a plan asks of pools, lists and memory; pretended devices decide lanes as real ones do."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import BadInput
from evpack.files import write_json
from evpack.home import Home
from evpack.plan import memory
from evpack.plan.campaign import build_plan, plan_campaign
from evpack.plan.memory import MEMORY_PLAN_COLUMNS, devices_of, step_gb
from evpack.plan.model import StepType
from evpack.plan.nvml import SIMULATED_ENV
from evpack.rundir import RunDir
from evpack.runtime.leases import quarantine, release
from evpack.runtime.pools import pool_slots
from evpack.settings import Settings

NOW = "2026-11-23T12:00:00Z"
MakeSettings = Callable[..., Settings]
MakeModel = Callable[..., Path]


@pytest.fixture
def eight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight pretended devices of 80 GB, the last one broken."""
    rows = [{"uuid": f"GPU-{index}", "memory_gb": 80} for index in range(8)]
    rows[7]["health"] = "Xid 79"
    (tmp_path / "gpus.json").write_text(json.dumps({"devices": rows}))
    monkeypatch.setenv(SIMULATED_ENV, str(tmp_path / "gpus.json"))


def make_plan(run: RunDir, settings: Settings, home: Home) -> Any:
    return plan_campaign(run, settings, home, source_repo={"commit": "0" * 40}, check_source=lambda *_: None)


@pytest.mark.usefixtures("eight")
def test_pretended_devices_are_planned_for(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    assert memory.host_devices(make_settings(num_gpus="auto"), home) == memory.Devices(7, 80)
    tiny = [str(tmp_path / "checkpoints" / "tiny")]
    model = build_plan(make_settings(num_gpus=2, models=tiny), home, NOW).plan.models[0]
    assert (model.devices, model.lane) == (1, "gpu1_s")
    assert model.scoring_gb == pytest.approx(6, abs=0.1)
    many = build_plan(make_settings(num_gpus="auto", gpu_memory_gb=2, models=tiny), home, NOW).plan.models[0]
    assert (many.devices, many.lane) == (4, "gpu4_s")  # 6 GB over 1.84 GB


@pytest.mark.usefixtures("eight")
def test_a_quarantined_device_is_none_to_plan_for(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings(num_gpus="auto", gpu_memory_gb=2)
    for number in range(4):
        quarantine(home, f"GPU-{number}", "assert")
    assert memory.host_devices(settings, home) == memory.Devices(3, 2)
    with pytest.raises(BadInput, match=r"does not fit: .* 3 devices give 1\.8 GB each"):
        build_plan(settings, home, NOW)  # it would take four
    for number in range(4, 7):
        quarantine(home, f"GPU-{number}", "assert")
    with pytest.raises(BadInput, match=r"no device can serve: GPU-0: quarantined \(assert\).*GPU-7: Xid 79") as caught:
        build_plan(settings, home, NOW)
    assert "evpack devices" in caught.value.mend and "NUM_GPUS=0" in caught.value.mend
    release(home, "GPU-5")
    assert memory.host_devices(settings, home).count == 1


@pytest.mark.usefixtures("eight")
def test_what_is_planned_goes_on_when_devices_are_quarantined(
    make_settings: MakeSettings, home: Home, tmp_path: Path
) -> None:
    run, settings = RunDir(tmp_path / "run"), make_settings(num_gpus="auto", gpu_memory_gb=2)
    plan = make_plan(run, settings, home)
    assert {model.devices for model in plan.models} == {4}
    for number in range(7):
        quarantine(home, f"GPU-{number}", "assert")
        write_json(home.pools, pool_slots())  # made anew
        assert pool_slots()["gpu"] == 7  # all but the broken one
        memory.check_lanes(make_plan(run, settings, home), home.pools)


@pytest.mark.usefixtures("eight")
def test_pools_that_are_too_small_are_refused(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    settings = make_settings(num_gpus="auto", gpu_memory_gb=2)
    for pools in ({"cpu": 2, "gpu": 3}, {"cpu": 2}):
        write_json(home.pools, pools)
        with pytest.raises(BadInput, match="lane gpu4_s take 4 slots of pool gpu") as caught:
            make_plan(RunDir(tmp_path / "run"), settings, home)
        assert "evpack airflow setup" in caught.value.mend
    assert not (tmp_path / "run").exists()
    write_json(home.pools, {"cpu": 2, "gpu": 4})
    make_plan(RunDir(tmp_path / "run"), settings, home)


def test_lists_that_airflow_would_not_expand(
    make_settings: MakeSettings, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = len(build_plan(make_settings(), home, NOW).plan.steps_of(StepType.CREATE))
    monkeypatch.setattr(memory, "MAX_MAP_LENGTH", cells - 1)
    settings = make_settings(models=[str(tmp_path / "checkpoints" / "tiny")])
    with pytest.raises(BadInput, match=f"lane cpu_s has {cells} cells"):
        make_plan(RunDir(tmp_path / "run"), settings, home)
    monkeypatch.setattr(memory, "MAX_MAP_LENGTH", cells)
    make_plan(RunDir(tmp_path / "run"), settings, home)


@pytest.mark.usefixtures("eight")
def test_memory_plan(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    plan = make_plan(run, make_settings(num_gpus=1), home)
    with (run.analysis / "memory_plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == MEMORY_PLAN_COLUMNS
    assert [row["task_id"] for row in rows] == [step.id for step in plan.steps if step.model]
    by_id = {row["task_id"]: row for row in rows}
    assert by_id["tiny.calibrate"]["task_type"] == "CALIBRATION_RUN"
    assert by_id["tiny.nan_injection.evaluate"]["task_type"] == "EVALUATE_ERROR"
    assert (by_id["tiny.calibrate"]["required_gpus"], by_id["tiny.setup_baseline"]["required_gpus"]) == ("1", "0")
    assert by_id["tiny.setup_baseline"]["model_size_gb"] == "4"  # MODEL_LOAD_OVERHEAD_GB and next to nothing
    weights = [int(row["priority"]) for row in rows if row["task_type"].startswith("EVALUATE")]
    assert weights == sorted(set(weights), reverse=True)


def test_memory_of_each_kind_of_step(make_settings: MakeSettings, home: Home) -> None:
    settings = make_settings(use_batch_edits=False)
    plan = build_plan(settings, home, NOW).plan
    model = plan.models[0].model_copy(update={"weights_gb": 14.0, "scoring_gb": 22.1, "devices": 2})
    plan = plan.model_copy(update={"models": (model,)})

    def gb(step: str) -> float:
        return step_gb(plan, plan.step(step), settings)

    assert (gb("tiny.setup_baseline"), gb("tiny.derive_preset"), gb("tiny.calibrate")) == (18, 5, 22.1)
    assert (gb("tiny.quant_clean.create"), gb("tiny.nan_injection.create")) == (22, 22)
    batch = plan.model_copy(update={"models": (model.model_copy(update={"batch_edits": True}),)})
    assert step_gb(batch, batch.step("tiny.quant_clean.create"), settings) == 36
    assert step_gb(batch, batch.step("tiny.nan_injection.create"), settings) == 22
    assert [devices_of(plan, plan.step(step)) for step in ("tiny.calibrate", "tiny.setup_baseline", "build_pack")] == [
        *(2, 0, 0)
    ]

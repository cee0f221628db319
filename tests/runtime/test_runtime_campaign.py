"""Real steps on pretended devices: planned into a device lane, leased, computed and recorded as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from evpack.errors import StepExit
from evpack.files import read_json
from evpack.runtime.leases import lease_devices, quarantine
from evpack.steps.runner import run_step
from evpack.steps.state import read_attempts
from tests.runtime.conftest import Pretend
from tests.steps.test_steps_baseline import Desk, desk, source, text  # noqa: F401 - fixtures


def test_losses_on_pretended_devices_are_those_of_the_cpu(
    desk: Desk,  # noqa: F811
    source: Path,  # noqa: F811
    pretend: Pretend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(count=8)
    runs = {gpus: desk.plan(str(source), run=f"run{gpus}", num_gpus=gpus) for gpus in (0, 8)}
    lanes = {gpus: read_json(run.plan)["models"][0]["lane"] for gpus, run in runs.items()}
    assert lanes == {0: "cpu_s", 8: "gpu1_s"}
    quarantine(desk.home, "GPU-0", "sick")
    found = {}
    for gpus, run in runs.items():
        name = desk.set_up(run)
        assert run_step(run.root, f"{name}.calibrate", lease=lease_devices) is StepExit.OK
        found[gpus] = read_json(run.model(name).calibration / "run_1" / "records.json")
    assert found[8]["compute"] == found[0]["compute"] and found[8]["compute"]["device"] == "cpu"
    assert found[8]["windows"] == found[0]["windows"]
    leased = read_attempts(runs[8], f"{name}.calibrate")[-1]["leased"]
    assert leased["devices"] == ["GPU-1"] and leased["simulated"] is True

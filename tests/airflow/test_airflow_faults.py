"""Failures on a real scheduler: a sick device, retries by class, a killed task. Only the steps' work is a stand-in."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from evpack.airflow.client import FINISHED
from evpack.airflow.config import CAMPAIGN_DAG
from evpack.plan.health import health_of
from evpack.plan.model import StepType, load_plan
from evpack.rundir import RunDir
from evpack.runtime.leases import holder
from evpack.steps.state import read_attempts, read_marker
from studies.scheduling.stage import Stage, stage
from tests.waiting import until, until_gone

pytestmark = pytest.mark.airflow

MODEL = "mistralai/Mistral-7B-v0.1"
NAME = "mistralai__mistral-7b-v01"
SCENARIOS = ["prune_50pct_stress", "extreme_quant", "nan_injection", "inf_injection"]
FAULTY = Path(__file__).with_name("faulty_step.py")


def evaluate(scenario: str) -> str:
    return f"{NAME}.{scenario}.evaluate"


FAULTS = {
    "GPU-0": ["sick"],
    evaluate("prune_50pct_stress"): ["defect"],
    evaluate("extreme_quant"): ["transient", "transient"],
    evaluate("nan_injection"): ["memory"],
    evaluate("inf_injection"): ["hang"],
}


def ended(at: Stage) -> None:
    """Fails when the campaign is over."""
    assert at.client.run_state(CAMPAIGN_DAG, "faults") not in FINISHED


def classes(run: RunDir, step: str) -> list[str]:
    return [record["class"] for record in read_attempts(run, step)]


def hanging(run: RunDir) -> int | None:
    """The process of the attempt that hangs on its device, None before it does."""
    records = read_attempts(run, evaluate("inf_injection"))
    return next((record["pid"] for record in records if record["class"] == "running" and record["leased"]), None)


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[str]]], None]:
    """Makes the steps of a stage fail as told."""

    def write(faults: dict[str, list[str]]) -> None:
        (tmp_path / "faults.json").write_text(json.dumps(faults))

    monkeypatch.setenv("EVPACK_FAULTS", str(tmp_path / "faults.json"))
    return write


Faulty = Callable[[dict[str, list[str]]], None]
IMPATIENT = {"retry_backoff_base": 0.5, "retry_backoff_max": 1, "reschedule_pause": 0, "lease_wait": 10}


def test_classes_of_failures_and_a_sick_device(tmp_path: Path, faulty: Faulty) -> None:
    faulty(FAULTS)
    with stage(tmp_path, [MODEL], devices=2, cpu_slots=2, scale=0, program=FAULTY) as at:
        run = at.start("faults", models=[MODEL], scenarios=SCENARIOS, **IMPATIENT)

        # The task is killed while its step computes: the device stays with the step until that has ended.
        step = until(lambda: hanging(run) or ended(at))
        held = holder(at.home, "GPU-1")
        assert held is not None and held["pid"] == step
        os.kill(psutil.Process(step).ppid(), signal.SIGKILL)
        until_gone(step)

        at.wait("faults")
        tasks = [task for task in at.steps("faults") if task["task_id"].endswith(".cells.evaluate")]

    # The sick device served one step, which went on elsewhere; so did all others.
    reason = health_of(at.home, "GPU-0").quarantined
    assert reason is not None and "device-side assert" in reason
    served = [
        (record["leased"]["devices"], record["class"])
        for each in load_plan(run).steps
        for record in read_attempts(run, each.id)
        if record["leased"]
    ]
    assert served.count((["GPU-0"], "transient")) == 1
    assert all(devices == ["GPU-1"] for devices, class_ in served if class_ == "ok")

    def spent(scenario: str) -> list[str]:
        """Classes of a cell's attempts; waiting for the only sound device is none."""
        return [class_ for class_ in classes(run, evaluate(scenario)) if class_ != "no_device"]

    assert spent("prune_50pct_stress") == ["permanent"]  # never retried
    assert spent("extreme_quant") == ["transient", "transient", "ok"]
    assert spent("nan_injection") == ["out_of_memory", "ok"]
    batch = load_plan(run).model(NAME).batch
    assert (run.root / f"{evaluate('nan_injection')}.batch").read_text() == str(batch // 2)
    killed, *rest = (r for r in read_attempts(run, evaluate("inf_injection")) if r["class"] != "no_device")
    assert (killed["class"], killed["error"]) == ("transient", "killed: its process is gone")
    assert [record["class"] for record in rest] == ["ok"]
    done = {scenario for scenario in SCENARIOS if read_marker(run, evaluate(scenario)) is not None}
    assert done == set(SCENARIOS) - {"prune_50pct_stress"}
    order = [step.scenario for step in load_plan(run).steps_of(StepType.EVALUATE)]
    tries = {order[task["map_index"]]: task["try_number"] for task in tasks}
    assert tries["prune_50pct_stress"] == 1
    assert tries["extreme_quant"] == 3  # waiting for a device costs no try


def test_a_resume_maps_a_model_without_memory_into_the_next_lane(tmp_path: Path, faulty: Faulty) -> None:
    """Calibration needs two devices, one cell needs four: each resume redoes what failed, a lane further on."""
    calibrate, hungry, other = f"{NAME}.calibrate", evaluate("extreme_quant"), evaluate("nan_injection")
    # The first attempt of each cell is refused, because there is no preset.
    faulty({calibrate: ["memory"] * 3, hungry: ["work", *["memory"] * 3]})

    def states(run_id: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for task in at.client.tasks(CAMPAIGN_DAG, run_id):
            found.setdefault(task["task_id"], set()).add(task["state"])
        return found

    def devices(step: str) -> list[int]:
        return [len(record["leased"]["devices"]) for record in read_attempts(run, step) if record["leased"]]

    with stage(tmp_path, [MODEL], devices=4, cpu_slots=2, scale=0, program=FAULTY) as at:
        run = at.start("planned", models=[MODEL], scenarios=["extreme_quant", "nan_injection"], **IMPATIENT)
        at.wait("planned")
        frozen, lane = run.plan.read_bytes(), load_plan(run).model(NAME).lane
        assert lane == "gpu1_s"
        assert states("planned")["gpu1_s.models.calibrate"] == {"failed"}
        created = {step.id: read_marker(run, step.id) for step in load_plan(run).steps_of(StepType.CREATE)}
        assert None not in created.values()

        at.start("second", resume=str(run.root))
        at.wait("second")
        second = states("second")
        assert second["gpu1_s.select_models"] == second["gpu1_s.models.calibrate"] == {"skipped"}
        assert second["gpu2_s.models.setup_baseline"] == second["gpu2_s.models.calibrate"] == {"success"}
        assert second["gpu2_s.cells.evaluate"] == {"success", "failed"}
        assert devices(calibrate) == [1, 1, 1, 2] and devices(other) == [2] and devices(hungry) == [2, 2, 2]
        kept = {step: read_marker(run, step) for step in (calibrate, other, f"{NAME}.setup_baseline")}

        at.start("third", resume=str(run.root))
        at.wait("third")
        assert states("third")["gpu4_s.cells.evaluate"] == {"success"}
        assert states("third")["gpu2_s.select_cells"] == {"skipped"}

        # A task of an earlier run holds fewer slots than its step now has devices.
        def tries() -> int:
            (task,) = (t for t in at.steps("planned") if t["task_id"] == "gpu1_s.models.calibrate")
            return int(task["try_number"])

        before = tries()
        at.client.clear(CAMPAIGN_DAG, "planned", [("gpu1_s.models.calibrate", 0)])
        at.wait("planned")
        assert tries() == before + 1
        assert states("planned")["gpu1_s.models.calibrate"] == {"failed"}

    assert devices(hungry) == [2, 2, 2, 4] and devices(calibrate) == [1, 1, 1, 2] and devices(other) == [2]
    assert {step: read_marker(run, step) for step in kept} == kept
    assert {step: read_marker(run, step) for step in created} == created
    assert run.plan.read_bytes() == frozen
    changes = [(change.to_lane, change.step, change.dag_run) for change in load_plan(run).lane_changes]
    assert changes == [("gpu2_s", calibrate, "second"), ("gpu4_s", hungry, "third")]

"""Failures on a real scheduler: a sick device, retries by class, a killed task. Only the steps' work is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from evpack.airflow.client import FINISHED
from evpack.airflow.config import CAMPAIGN_DAG
from evpack.plan.model import StepType, load_plan
from evpack.rundir import RunDir
from evpack.runtime.leases import health_of, holder
from evpack.steps.state import read_attempts, read_marker
from studies.scheduling import stage as stages

pytestmark = pytest.mark.airflow

MODEL = "mistralai/Mistral-7B-v0.1"
NAME = "mistralai__mistral-7b-v01"
SCENARIOS = ["prune_50pct_stress", "extreme_quant", "nan_injection", "inf_injection"]
FAULTY = Path(__file__).with_name("faulty_step.py")
DAG_FILE = f"""# Airflow looks only into files with the words airflow and dag.
import sys
from pathlib import Path

sys.path.insert(0, {{root!r}})

from studies.scheduling import sham_dags

sham_dags.SHAM = Path({str(FAULTY)!r})
evidence_campaign, evidence_nightly = sham_dags.sham_dags(inline={{inline}})
"""
DEADLINE_S = 900.0
"""Only there so that a hang ends."""


def evaluate(scenario: str) -> str:
    return f"{NAME}.{scenario}.evaluate"


FAULTS = {
    evaluate("prune_50pct_stress"): ["defect"],
    evaluate("extreme_quant"): ["transient", "transient"],
    evaluate("nan_injection"): ["memory"],
    evaluate("inf_injection"): ["hang"],
}


def eventually(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := found()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.3)
    return value


def ended(at: stages.Stage) -> None:
    """Fails when the campaign is over."""
    assert at.client.run_state(CAMPAIGN_DAG, "faults") not in FINISHED


def classes(run: RunDir, step: str) -> list[str]:
    return [record["class"] for record in read_attempts(run, step)]


def hanging(run: RunDir) -> int | None:
    """The process of the attempt that hangs on its device, None before it does."""
    records = read_attempts(run, evaluate("inf_injection"))
    return next((record["pid"] for record in records if record["class"] == "running" and record["leased"]), None)


def test_classes_of_failures_and_a_sick_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps(FAULTS))
    monkeypatch.setenv("EVPACK_FAULTS", str(faults))
    monkeypatch.setattr(stages, "_DAG_FILE", DAG_FILE)
    settings = {"retry_backoff_base": 0.5, "retry_backoff_max": 1, "reschedule_pause": 2, "lease_wait": 1}
    with stages.stage(tmp_path, [MODEL], devices=2, cpu_slots=2, scale=0) as at:
        run = at.start("faults", models=[MODEL], scenarios=SCENARIOS, **settings)

        # The task is killed while its step computes: the device stays with the step until that has ended.
        step = psutil.Process(eventually(lambda: hanging(run) or ended(at)))
        held = holder(at.home, "GPU-1")
        assert held is not None and held["pid"] == step.pid
        os.kill(step.ppid(), signal.SIGKILL)
        psutil.wait_procs([step], timeout=60)
        assert not step.is_running() or step.status() == psutil.STATUS_ZOMBIE

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

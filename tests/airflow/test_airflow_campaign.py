"""The whole way on a real scheduler: run, clear a finished cell, run again on the same directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evpack.airflow.client import FINISHED, Client
from evpack.airflow.config import CAMPAIGN_DAG, Deployment
from evpack.airflow.embedded import running
from evpack.errors import CampaignExit
from evpack.files import read_json
from evpack.home import Home
from evpack.plan.model import load_plan
from evpack.plan.order import priority
from evpack.rundir import RunDir
from evpack.runtime.outcome import campaign_outcome
from evpack.steps.state import Marker, read_marker
from tests.waiting import DEADLINE_S, until

pytestmark = pytest.mark.airflow

SCENARIOS = ("quant_clean", "prune_50pct_stress", "nan_injection")
cell = "fixture.prune_50pct_stress.evaluate"
RUNS = ("clean_edit_runs=1", "stress_edit_runs=1", "drift_calibration_runs=1")


def evpack(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PACK_", "EVPACK_"))}
    return subprocess.run(
        [sys.executable, "-m", "evpack.cli.main", *arguments],
        env={**kept, "EVPACK_HOME": str(home), "NUM_GPUS": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def markers(run: RunDir) -> dict[str, Marker]:
    found = {step.id: read_marker(run, step.id) for step in load_plan(run).steps}
    return {step_id: marker for step_id, marker in found.items() if marker is not None}


def wait_for(client: Client, run_id: str) -> str:
    until(lambda: client.run_state(CAMPAIGN_DAG, run_id) in FINISHED)
    return client.run_state(CAMPAIGN_DAG, run_id)


def test_a_campaign_on_a_real_scheduler(
    tmp_path: Path, scenarios: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUM_GPUS", "0")
    chosen = list(scenarios.values())
    create, cell = (f"fixture.{scenarios['stress']}.{step}" for step in ("create", "evaluate"))
    home = Home(tmp_path / "home").create()
    params = [part for run in RUNS for part in ("--param", run)]
    with running(Deployment.locate(home), print, up=True) as airflow, Client(airflow.endpoint) as client:
        done = evpack(home.root, "campaign", "run", "--suite", "fixture", "--scenarios", ",".join(chosen), *params)
        assert done.returncode == CampaignExit.PASS, done.stdout + done.stderr
        assert "Verdict: PASS" in done.stdout
        assert "verifier: ok (exit 0)" in done.stdout

        run = RunDir(next((home.runs / CAMPAIGN_DAG).iterdir()))
        run_id = run.root.name
        first = markers(run)
        assert len(first) == len(load_plan(run).steps)
        check_tasks(client, run_id, chosen)

        client.clear(CAMPAIGN_DAG, run_id, [("cpu_s.cells.evaluate", chosen.index(scenarios["stress"]))])
        assert wait_for(client, run_id) == "success"
        second = markers(run)
        redone = {step_id for step_id, marker in second.items() if marker != first[step_id]}
        assert redone == {create, cell, "compile_verdict", "build_pack", "verify_pack"}
        assert second[create].outputs_digest() == first[create].outputs_digest()  # its weights were gone
        assert second[cell].attempt > first[cell].attempt
        assert second[cell].input_digest == first[cell].input_digest
        assert any((run.archive / cell).iterdir())
        assert campaign_outcome(run, dag_run=run_id).exit is CampaignExit.PASS

    verdict = read_json(run.final_verdict)
    resumed = evpack(home.root, "campaign", "resume", str(run.root))
    assert resumed.returncode == CampaignExit.PASS, resumed.stdout + resumed.stderr
    kept = {step_id for step_id, marker in markers(run).items() if marker == second[step_id]}
    assert kept == set(second) - {"compile_verdict", "build_pack", "verify_pack"}
    assert {**read_json(run.final_verdict), "timestamp": None} == {**verdict, "timestamp": None}
    assert "PASS" in evpack(home.root, "campaign", "list").stdout


def check_tasks(client: Client, run_id: str, scenarios: list[str]) -> None:
    """Readable names, weights of the plan's order, pools; lanes without models cost nothing."""
    tasks = client.tasks(CAMPAIGN_DAG, run_id)
    cells = sorted((task for task in tasks if task["task_id"] == "cpu_s.cells.evaluate"), key=lambda t: t["map_index"])
    assert [cell["rendered_map_index"] for cell in cells] == [f"fixture · {scenario}" for scenario in scenarios]
    assert [cell["priority_weight"] for cell in cells] == [priority("evaluate", "cpu_s", n) for n in range(3)]  # type: ignore[arg-type]
    assert {cell["pool"] for cell in cells} == {"cpu"}
    others = [task for task in tasks if "." in task["task_id"] and not task["task_id"].startswith("cpu_s.")]
    assert others
    assert {task["state"] for task in others} == {"skipped"}

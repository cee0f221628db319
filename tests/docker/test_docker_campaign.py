"""Campaigns whose steps run in containers, on a real scheduler: one is disturbed by a clear, one by a SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evpack.airflow.client import Client
from evpack.airflow.config import CAMPAIGN_DAG, Deployment
from evpack.airflow.embedded import running
from evpack.errors import CampaignExit
from evpack.files import read_json
from evpack.home import Home
from evpack.rundir import RunDir
from evpack.runtime.docker_engine import ours
from evpack.runtime.outcome import campaign_outcome
from evpack.steps.state import read_attempts
from tests.docker.conftest import IMAGE
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.airflow]

CALIBRATE = "fixture.calibrate"
CAMPAIGN = (
    *("campaign", "run", "--suite", "fixture", "--scenarios", "quant_clean,nan_injection"),
    *("-p", "clean_edit_runs=1", "-p", "drift_calibration_runs=1"),
)


@pytest.fixture(autouse=True)
def containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_RUNTIME", "docker")
    monkeypatch.setenv("EVPACK_WORKER_IMAGE", IMAGE)
    monkeypatch.setenv("NUM_GPUS", "0")


def evpack(home: Home, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "evpack.cli.main", *arguments],
            env={**os.environ, "EVPACK_HOME": str(home.root)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def at_work(engine: Any, home: Home, step: str) -> list[dict[str, Any]]:
    return [container for container in ours(engine, home, step=step) if container["State"] == "running"]


def run_dir(log: Path) -> RunDir:
    line = next(line for line in log.read_text().splitlines() if line.startswith("run directory: "))
    return RunDir(Path(line.removeprefix("run directory: ")))


def test_a_campaign_in_containers_passes_although_a_running_step_is_cleared(
    engine: Any, deployment: Home, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with running(Deployment.locate(deployment), print, up=True) as airflow, Client(airflow.endpoint) as client:
        campaign = evpack(deployment, log, *CAMPAIGN)
        (container,) = until(lambda: at_work(engine, deployment, CALIBRATE) or campaign.poll(), log.read_text)
        engine.pause(container["Id"])  # Airflow passes a clear on with its next heartbeat: the step must not end before
        labels = {name.removeprefix("evpack."): value for name, value in container["Labels"].items()}
        assert (labels["dag_id"], labels["task_id"]) == (CAMPAIGN_DAG, "cpu_s.models.calibrate")
        assert (labels["map_index"], labels["try"], container["ImageID"]) == ("0", "1", IMAGE)
        client.clear(CAMPAIGN_DAG, labels["dag_run"], [(labels["task_id"], 0)])
        together: list[int] = []

        def ended() -> bool:
            found = ours(engine, deployment)
            steps = Counter(one["Labels"]["evpack.step"] for one in found if one["State"] in ("running", "paused"))
            together.append(max(steps.values(), default=0))
            return campaign.poll() is not None

        until(ended, log.read_text)
    assert campaign.returncode == CampaignExit.PASS, log.read_text()
    assert max(together) == 1 and ours(engine, deployment) == []
    run = run_dir(log)
    assert campaign_outcome(run).exit is CampaignExit.PASS
    tries = [(record["try"], record["class"]) for record in read_attempts(run, CALIBRATE)]
    assert tries[0] == (1, "transient") and tries[-1] == (2, "ok")
    manifests = sorted(run.root.glob("fixture/reports/**/runtime.manifest.json"))
    assert len(manifests) == 2
    assert {read_json(path)["runtime"]["image_digest"] for path in manifests} == {IMAGE}


def test_a_killed_scheduler_leaves_no_container_and_the_campaign_goes_on(
    engine: Any, deployment: Home, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    campaign = evpack(deployment, log, *CAMPAIGN)
    until(lambda: at_work(engine, deployment, CALIBRATE) or campaign.poll(), log.read_text)
    state = json.loads((deployment.airflow / "embedded.json").read_text())
    (scheduler,) = (entry["sid"] for entry in state["sessions"] if entry["name"] == "scheduler")
    os.kill(scheduler, signal.SIGKILL)
    assert until(lambda: campaign.poll() is not None, log.read_text)
    assert campaign.returncode == CampaignExit.INCOMPLETE, log.read_text()
    assert ours(engine, deployment) == []
    again = evpack(deployment, log, "campaign", "resume", str(run_dir(log).root))
    assert until(lambda: again.poll() is not None, log.read_text)
    assert again.returncode == CampaignExit.PASS, log.read_text()
    assert ours(engine, deployment) == []

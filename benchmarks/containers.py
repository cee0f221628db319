"""The same campaign in processes and in containers by turns, for what a container adds to a step.

`tools/with_docker.sh python -m benchmarks.containers FILE` writes into FILE, by runtime and step, how many seconds the
step's task took on a real scheduler: the median of the rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from evpack.airflow import embedded
from evpack.airflow.client import Client
from evpack.airflow.config import Deployment
from evpack.files import write_json
from evpack.home import ENV_NAME, Home
from evpack.runtime.choice import DOCKER, PROCESS, RUNTIME_ENV
from studies.scheduling.stage import Stage, fixture_models

RUN_ID = "bench"
MODELS = 2
ROUNDS = 3
CAMPAIGN = {
    "suite": "fixture",
    "scenarios": ["quant_clean", "prune_50pct_stress", "nan_injection"],
    "clean_edit_runs": 1,
    "stress_edit_runs": 1,
    "drift_calibration_runs": 1,
}


def task_seconds(root: Path, runtime: str, params: dict[str, Any]) -> dict[str, float]:
    """Wall seconds of every task that runs a step of a model, in a deployment of its own below `root`.

    Raises:
        AssertionError: when a task failed: then there is nothing to compare.
    """
    home = Home(root / runtime).create()
    with (
        mock.patch.dict(os.environ, {ENV_NAME: str(home.root), RUNTIME_ENV: runtime, "NUM_GPUS": "0"}),
        embedded.running(Deployment.locate(home), lambda line: print(line, file=sys.stderr)) as airflow,
        Client(airflow.endpoint) as client,
    ):
        at = Stage(home, client, airflow)
        at.start(RUN_ID, **CAMPAIGN, **params)
        at.wait(RUN_ID)
        tasks = [task for task in at.steps(RUN_ID) if task["queued_when"]]
    bad = [task["task_id"] for task in tasks if task["state"] != "success" or task["try_number"] != 1]
    assert tasks and not bad, f"{len(tasks)} tasks, not at once well: {bad[:3]}"
    return {f"{task['task_id']}[{task['map_index']}]": _seconds(task["start_date"], task["end_date"]) for task in tasks}


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        root = Path(folder)
        params = fixture_models(root, MODELS)
        rounds = [
            {name: task_seconds(root / str(number), name, params) for name in (PROCESS, DOCKER)}
            for number in range(ROUNDS)
        ]
        seconds = {
            name: {task: statistics.median(one[name][task] for one in rounds) for task in rounds[0][name]}
            for name in (PROCESS, DOCKER)
        }
        write_json(Path(sys.argv[1]), seconds)

"""Pools that somebody changed: seen by `campaign run` over the REST API and by the scheduler when a run starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evpack.airflow import listeners
from evpack.airflow.config import Deployment
from evpack.cli import campaign
from evpack.errors import BadInput
from evpack.files import write_json
from evpack.home import Home


def airflow_with(**pools: int) -> Any:
    return SimpleNamespace(pools=lambda: pools)


def test_smaller_pools_are_refused_and_larger_ones_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path)
    campaign._check_pools(airflow_with(default_pool=1), home)
    write_json(home.pools, {"cpu": 2, "gpu": 8})
    campaign._check_pools(airflow_with(cpu=2, gpu=8, other=1), home)
    assert capsys.readouterr().out == ""
    campaign._check_pools(airflow_with(cpu=4, gpu=8), home)
    assert "warning: pool cpu has 4 slots" in capsys.readouterr().out
    with pytest.raises(BadInput, match="pool gpu has 4 slots in Airflow, made were 8"):
        campaign._check_pools(airflow_with(cpu=2, gpu=4), home)
    with pytest.raises(BadInput, match="pool gpu has no slots"):
        campaign._check_pools(airflow_with(cpu=2), home)


@pytest.mark.airflow
def test_the_scheduler_tells_of_changed_pools(
    database: None, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = deployment.home
    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    made = json.loads(home.pools.read_text())
    home.notifications.unlink(missing_ok=True)
    listeners.on_dag_run_running(SimpleNamespace(), "")
    assert not home.notifications.exists()
    try:
        write_json(home.pools, {**made, "cpu": made["cpu"] + 1})
        listeners.on_dag_run_running(SimpleNamespace(), "")
    finally:
        write_json(home.pools, made)
    (told,) = map(json.loads, home.notifications.read_text().splitlines())
    assert told["event"] == "pool_drift" and f"pool cpu has {made['cpu']} slots" in told["text"]

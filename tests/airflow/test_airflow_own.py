"""An Airflow of one's own (AIRFLOW_HOME): set up by `evpack airflow setup`, looked at by `evpack doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evpack.airflow.config import SPARE_TASKS, Deployment
from evpack.cli import doctor
from evpack.cli.airflow import prepare
from evpack.home import Home
from evpack.runtime.pools import made_pools

pytestmark = pytest.mark.airflow

SOUND: dict[str, Any] = {
    "options": {
        "core.max_map_length": "30000",
        "core.parallelism": str(SPARE_TASKS + 3),
        "core.max_active_tasks_per_dag": "99",
        "scheduler.max_tis_per_query": str(SPARE_TASKS + 3),
    },
    "pools": {"default_pool": 128, "cpu": 2, "gpu": 1},
    "weights": True,
    "order": True,
    "dags": ["evidence_campaign", "evidence_nightly"],
}


def complaints(home: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    home.create().pools.write_text('{"cpu": 2, "gpu": 1}')
    answer = subprocess.CompletedProcess([], 0, "a line of Airflow's\n" + json.dumps(told), "")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: answer)
    return [found.text for found in doctor._own_airflow(home) if found.mend]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"pools": {"cpu": 2}}, "pool gpu has no slots"),
        ({"options": {**SOUND["options"], "core.max_map_length": "1024"}}, "max_map_length is 1024"),
        ({"options": {**SOUND["options"], "core.parallelism": str(SPARE_TASKS + 2)}}, "parallelism"),
        ({"weights": False}, "no plugin gives evpack_plugin.SmallFirst"),
        ({"order": False}, "PACK_ORDER"),
        ({"dags": []}, "no DAG evidence_campaign"),
    ],
)
def test_what_campaigns_need_is_asked_for(
    changed: dict[str, Any], told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = complaints(Home(tmp_path), {**SOUND, **changed}, monkeypatch)
    assert [told in line for line in found if told] == ([True] if told else []) and len(found) == bool(told)


def test_it_is_set_up_and_then_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, place = Home(tmp_path / "home"), tmp_path / "own"
    own = Deployment(Home(tmp_path), Deployment.locate(home, {}).project)  # writes a configuration for us
    own.write_config(port=1, slots=200, schedules=False)
    own.root.rename(place)
    text = (place / "airflow.cfg").read_text().replace(str(own.root), str(place))
    (place / "airflow.cfg").write_text(text)
    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.setenv("AIRFLOW_HOME", str(place))
    monkeypatch.setenv("AIRFLOW_CONFIG", str(place / "airflow.cfg"))
    prepare()
    assert set(made_pools(home)) == {"cpu", "gpu"}
    found = list(doctor.examine(home))
    assert [each for each in found if each.mend] == []
    assert any("AIRFLOW_HOME" in each.text for each in found)


def test_an_airflow_that_cannot_be_asked_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    (found,) = doctor._own_airflow(Home(tmp_path))
    assert "cannot be asked" in found.text and found.mend

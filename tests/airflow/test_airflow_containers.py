"""The DAGs of a deployment that runs steps in containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.serialization.serialized_objects import DagSerialization

from evpack.airflow.docker_operator import ContainerStepOperator
from evpack.airflow.factory import build_dags
from evpack.errors import BadInput
from evpack.home import Home
from evpack.runtime.abandoned import reap_abandoned


def test_only_steps_of_models_and_cells_run_in_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process = build_dags()[0]
    monkeypatch.setenv("EVPACK_RUNTIME", "docker")
    campaign = build_dags()[0]
    assert campaign.task_ids == in_process.task_ids
    for task in campaign.tasks:
        mapped: Any = getattr(task, "operator_class", type(task))
        assert (mapped is ContainerStepOperator) == (task.task_id.count(".") == 2)
    stored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(campaign))
    assert stored.task_dict.keys() == campaign.task_dict.keys()


def test_an_unknown_runtime_is_refused_when_the_dags_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_RUNTIME", "podman")
    with pytest.raises(BadInput, match="EVPACK_RUNTIME='podman'"):
        build_dags()


def test_an_engine_that_does_not_answer_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    reap_abandoned(Home(tmp_path), said.append)
    assert said == []  # steps run in processes
    monkeypatch.setenv("EVPACK_RUNTIME", "docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    reap_abandoned(Home(tmp_path), said.append)
    assert len(said) == 1 and "no Docker engine answers" in said[0]

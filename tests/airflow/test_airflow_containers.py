"""The DAGs of a deployment that runs steps in containers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.serialization.serialized_objects import DagSerialization
from typer.testing import CliRunner

from evpack.airflow.docker_operator import ContainerStepOperator
from evpack.airflow.endings import StepFailed, StepRetry
from evpack.airflow.factory import build_dags
from evpack.airflow.operators import PlanOperator
from evpack.cli.campaign import start
from evpack.cli.main import build_app
from evpack.errors import BadInput
from evpack.files import write_json
from evpack.home import Home
from evpack.plan.model import StepPlan, StepType
from evpack.rundir import RunDir
from evpack.runtime.abandoned import reap_abandoned
from evpack.runtime.choice import check_runtime
from evpack.settings import MOST_RETRIES, Settings
from evpack.steps.state import read_attempts
from tests.plans import planned_run

CALIBRATE = "m.calibrate"


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
    for command in ("setup", "up"):
        told = CliRunner().invoke(build_app(), ["airflow", command]).exception
        assert isinstance(told, BadInput) and "EVPACK_RUNTIME='podman'" in told.what


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment that runs steps in containers of an engine that is not there; its home."""
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVPACK_RUNTIME", "docker")
    monkeypatch.setenv("EVPACK_WORKER_IMAGE", "sha256:" + "0" * 64)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("environ", "refusal"),
    [
        ({}, "no Docker engine answers"),
        ({"EVPACK_WORKER_IMAGE": ""}, "EVPACK_WORKER_IMAGE='' pins no image"),
        ({"EVPACK_RUNTIME": "podman"}, "EVPACK_RUNTIME='podman' is no runtime"),
    ],
)
def test_a_runtime_that_runs_nothing_is_refused_before_anything_starts(
    environ: dict[str, str], refusal: str, no_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=refusal):
        check_runtime()
    with pytest.raises(BadInput, match=refusal):
        start({"suite": "fixture"}, quick=True)
    assert not no_engine.exists()
    write_json(no_engine / "pools.json", {"cpu": 1, "gpu": 0})
    context: Any = {"params": {}, "dag_run": SimpleNamespace(run_id="r")}
    with pytest.raises(BadInput, match=refusal):
        PlanOperator(task_id="plan")._plan(context, Home(no_engine))
    assert list(no_engine.iterdir()) == [no_engine / "pools.json"]


@pytest.mark.usefixtures("no_engine")
def test_where_steps_run_on_other_hosts_no_engine_is_asked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_HOSTS", "alpha:8x80:32")
    check_runtime()


def task_of(place: Path) -> tuple[RunDir, ContainerStepOperator, Any]:
    """A campaign of one step, its task, and the context in which Airflow executes that."""
    step = StepPlan(id=CALIBRATE, type=StepType.CALIBRATE, model="m", lane="cpu_s")
    run = planned_run(place / "run", [step], Settings(min_free_disk_gb=0))
    me = {"dag_id": "d", "run_id": "r"}
    write_json(run.dag_run, {"at_work": me})
    ti = SimpleNamespace(xcom_pull=lambda **_: str(run.root), try_number=1, max_tries=MOST_RETRIES, map_index=0)
    ti.dag_id, ti.task_id = "d", "cpu_s.models.calibrate"
    task = ContainerStepOperator(task_id=ti.task_id, subject="m", title="m")
    return run, task, {"ti": ti, "dag_run": SimpleNamespace(**me)}


@pytest.mark.parametrize(
    ("image", "end", "class_", "error"),
    [
        ("sha256:" + "0" * 64, StepRetry, "transient", "no Docker engine answers"),
        ("latest", StepFailed, "bad_input", "pins no image"),
    ],
)
def test_what_stands_in_the_way_of_a_container_is_in_the_books_of_its_step(
    image: str,
    end: type[Exception],
    class_: str,
    error: str,
    no_engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVPACK_WORKER_IMAGE", image)
    if class_ == "bad_input":
        monkeypatch.setattr("evpack.runtime.docker_engine.connect", lambda: None)
    run, task, context = task_of(tmp_path)
    with pytest.raises(end):
        task.execute(context)
    (record,) = read_attempts(run, CALIBRATE)
    assert record["class"] == class_ and error in record["error"]
    assert not no_engine.exists()


@pytest.mark.usefixtures("no_engine")
def test_a_task_that_is_stopped_while_it_looks_for_its_engine_starts_no_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, task, context = task_of(tmp_path)
    engine = SimpleNamespace(containers=lambda **_: [])  # makes none

    def connect() -> Any:
        task.on_kill()  # as the handler of SIGTERM does, and then the task goes on
        return engine

    monkeypatch.setattr("evpack.runtime.docker_engine.connect", connect)
    with pytest.raises(StepRetry):
        task.execute(context)
    (record,) = read_attempts(run, CALIBRATE)
    assert record["error"] == "stopped before its container was made"


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

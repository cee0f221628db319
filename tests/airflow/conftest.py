"""One throw-away Airflow home per session, set before anything imports airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evpack.airflow.config import Deployment
from evpack.home import Home

_ROOT = Path(tempfile.mkdtemp(prefix="evpack-airflow-"))
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)
_DEPLOYMENT = Deployment.locate(Home(_ROOT / "home"), {})
_DEPLOYMENT.write_config(port=1, slots=2, schedules=False)
os.environ.update(_DEPLOYMENT.environ())
sys.path.insert(0, str(_DEPLOYMENT.project / "plugins"))


@pytest.fixture
def deployment() -> Deployment:
    """The deployment that this process's airflow is configured for."""
    return _DEPLOYMENT


@pytest.fixture(scope="session")
def scenarios() -> dict[str, str]:
    """One scenario of the fixture suite by category, in the order of its manifest."""
    from evpack.catalog.suites import chosen_scenarios, settings_for

    found: dict[str, str] = {}
    for scenario in chosen_scenarios(settings_for({"suite": "fixture"}, {}, {}, _DEPLOYMENT.home)).scenarios:
        found.setdefault(scenario.category.value, scenario.id)
    return found


@pytest.fixture(scope="session")
def dag_files() -> Path:
    return _DEPLOYMENT.project / "dags"


@pytest.fixture(scope="session")
def database() -> Iterator[None]:
    """The metadata database of this process's airflow, with pools and DAGs."""
    from evpack.airflow.prepare import prepare

    prepare(_DEPLOYMENT.home, close_runs=False)
    yield


@pytest.fixture(scope="module")
def dag(database: None, dag_files: Path) -> Any:
    """The campaign's DAG."""
    from airflow.dag_processing.dagbag import BundleDagBag

    return BundleDagBag(dag_files, bundle_path=dag_files, bundle_name="dags-folder").get_dag("evidence_campaign")


@pytest.fixture
def cells(scenarios: dict[str, str]) -> list[str]:
    """The scenarios that `play` runs."""
    return [scenarios["clean"], scenarios["error_injection"]]


@pytest.fixture
def play(
    dag: Any, cells: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, dict[str, Counter[str]]]]:
    """Run the DAG in this process with stand-ins for steps; the run's state and the states of each task's instances."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from evpack.runtime import process

    real = process.step_command

    def command(*args: Any, **kwargs: Any) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("fake_step.py")), *real(*args, **kwargs)[4:]]

    monkeypatch.setattr(process, "step_command", command)
    monkeypatch.setenv("EVPACK_HOME", str(_DEPLOYMENT.home.root))

    def work(run_dir: Path, **conf: Any) -> tuple[str, dict[str, Counter[str]]]:
        fresh = {"resume": None, "suite_mode": None}  # the DAG object keeps the params of an earlier play
        run = dag.test(run_conf={"suite": "fixture", "scenarios": cells, "output_dir": str(run_dir), **fresh, **conf})
        states: dict[str, Counter[str]] = {}
        with create_session() as session:
            rows = select(TaskInstance.task_id, TaskInstance.state).where(TaskInstance.run_id == run.run_id)
            for task_id, state in session.execute(rows):
                states.setdefault(task_id, Counter())[str(state)] += 1
        return str(run.state), states

    return work

"""One throw-away Airflow home per session, set before anything imports airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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

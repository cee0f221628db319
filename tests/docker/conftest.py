"""An engine, the worker image (`make test-docker` provides both), and a planned campaign of the fixture model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import StepExit
from evpack.home import Home
from evpack.rundir import RunDir
from evpack.runtime.docker_engine import connect, ours, remove
from evpack.runtime.docker_spec import WORKER_IMAGE_ENV, ContainerLimits
from evpack.runtime.docker_step import ContainerWork
from evpack.steps.plan import open_campaign
from evpack.steps.runner import run_step

IMAGE = os.environ.get(WORKER_IMAGE_ENV, "")  # tests themselves see no variable of this project
ON_ENGINE = ("engine", "hostile_engine", "sources", "campaign")
collect_ignore = [] if IMAGE else [f"test_docker_{name}.py" for name in ON_ENGINE]

Plan = Callable[..., RunDir]
Run = Callable[..., StepExit]


@pytest.fixture(scope="session")
def limits() -> ContainerLimits:
    return ContainerLimits(IMAGE, memory_bytes=3 * 10**9, shm_bytes=64 * 10**6)


@pytest.fixture(scope="session")
def engine(limits: ContainerLimits) -> Any:
    return connect()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home").create()


@pytest.fixture
def deployment(engine: Any, home: Home) -> Iterator[Home]:
    """A home whose containers are gone afterwards, whatever the test did."""
    yield home
    for container in ours(engine, home):
        remove(engine, container["Id"])


@pytest.fixture
def in_container(engine: Any, limits: ContainerLimits, deployment: Home) -> Run:
    """Run a step in a container of the test's engine; keyword arguments are other limits."""

    def run(run: RunDir, step: str, **changed: Any) -> StepExit:
        return run_step(run.root, step, work=ContainerWork(lambda: (engine, replace(limits, **changed)), {}))

    return run


@pytest.fixture
def plan(home: Home, tmp_path: Path) -> Plan:
    """Plan the fixture model with one clean edit and one fault; keyword arguments are settings."""

    def make(environ: dict[str, str] | None = None, **params: Any) -> RunDir:
        chosen = {
            "suite": "fixture",
            "scenarios": "quant_clean,nan_injection",
            "clean_edit_runs": 1,
            "drift_calibration_runs": 1,
            "num_gpus": 0,
            "lease_wait": 0,
            **params,
        }
        return open_campaign(chosen, home, default_root=tmp_path / "run", environ=environ or {})[0]

    return make

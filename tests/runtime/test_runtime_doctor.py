"""The doctor: what fits, what drifted, and that each complaint says how to mend it."""

from __future__ import annotations

import configparser

import pytest

from evpack.airflow.config import Deployment
from evpack.cli.doctor import Finding, examine
from evpack.files import write_json
from evpack.home import Home
from evpack.plan.hosts import HOSTS_ENV
from evpack.runtime.leases import quarantine
from evpack.runtime.pools import pool_slots
from tests.runtime.conftest import Pretend


def wrong(home: Home) -> list[Finding]:
    return [finding for finding in examine(home) if finding.mend is not None]


@pytest.fixture(autouse=True)
def _no_airflow_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_HOME", raising=False)


@pytest.fixture
def deployment(home: Home, pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A home as `evpack airflow setup` leaves it, on a host with two pretended devices."""
    for name in ("CUDA_VISIBLE_DEVICES", "GPU_ID_LIST", "NUM_GPUS"):
        monkeypatch.delenv(name, raising=False)
    pretend(count=2)
    deployment = Deployment.locate(home.create())
    deployment.write_config(port=8080, slots=sum(pool_slots().values()), schedules=True)
    write_json(home.pools, pool_slots())
    return deployment


def test_a_sound_deployment(deployment: Deployment) -> None:
    assert wrong(deployment.home) == []
    assert any("pretended" in finding.text for finding in examine(deployment.home))


def test_nothing_was_set_up(home: Home, pretend: Pretend) -> None:
    pretend()
    assert ["pools" in found.text or "Airflow" in found.text for found in wrong(home)] == [True, True]


def test_devices_came_or_went(deployment: Deployment, pretend: Pretend) -> None:
    pretend(count=5)
    (found,) = wrong(deployment.home)
    assert "gpu 2" in found.text and "gpu 5" in found.text and "evpack airflow setup" in str(found.mend)


@pytest.mark.parametrize(("listed", "faults"), [("2x80", 0), ("1x40", 0), ("3x80", 1), ("2x141", 1)])
def test_a_listed_host_has_what_the_list_says(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, listed: str, faults: int
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "alpha")
    monkeypatch.setenv(HOSTS_ENV, f"alpha:{listed}:4,beta:8x80:4")
    write_json(deployment.home.pools, pool_slots())
    deployment.write_config(port=8080, slots=sum(pool_slots().values()), schedules=True)
    found = wrong(deployment.home)
    assert len(found) == faults
    assert all("gives this host" in finding.text and "it has 2, of 80 GB" in str(finding.mend) for finding in found)


def test_sick_devices_are_named(deployment: Deployment) -> None:
    quarantine(deployment.home, "GPU-1", "assert")
    (found,) = wrong(deployment.home)
    assert "GPU-1" in found.text and "evpack devices release GPU-1" in str(found.mend)


def test_a_changed_configuration_is_shown(deployment: Deployment) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(deployment.config_file)
    parser.set("core", "max_map_length", "1024")
    parser.remove_option("scheduler", "max_tis_per_query")
    with deployment.config_file.open("w") as file:
        parser.write(file)
    first, second = wrong(deployment.home)
    assert "[core] max_map_length is 1024, documented is 20000" in first.text
    assert "max_tis_per_query is not set" in second.text


def test_a_wrong_file_of_devices_is_a_finding(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_SIMULATED_GPUS", "/nothing/here")
    assert {found.text.split("=")[0] for found in wrong(deployment.home)} == {"EVPACK_SIMULATED_GPUS"}

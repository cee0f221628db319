"""The embedded Airflow's configuration, its secrets, and what it finds of a killed predecessor."""

from __future__ import annotations

import configparser
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from filelock import FileLock
from sqlalchemy.engine import make_url

from evpack.airflow import embedded
from evpack.airflow.client import Client, Endpoint
from evpack.airflow.config import Deployment
from evpack.errors import BadInput, Transient
from evpack.home import Home
from evpack.processes import start_of
from tests.waiting import until_gone


@pytest.fixture
def fresh(tmp_path: Path) -> Deployment:
    found = Deployment.locate(Home(tmp_path / "home"), {})
    found.root.mkdir(parents=True)
    return found


def read(deployment: Deployment) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(deployment.config_file)
    return parser


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_private_and_outlive_a_new_configuration(fresh: Deployment) -> None:
    fresh.write_config(port=1234, slots=3, schedules=False)
    first, password = read(fresh), fresh.password()
    fresh.write_config(port=4321, slots=3, schedules=True)
    second = read(fresh)
    for section, option in (("core", "fernet_key"), ("api", "secret_key"), ("api_auth", "jwt_secret")):
        assert first[section][option] == second[section][option] != ""
    assert second["core"]["execution_api_server_url"] == "http://127.0.0.1:4321/execution/"
    assert second["scheduler"]["use_job_schedule"] == "True"
    assert fresh.password() == password
    assert mode(fresh.config_file) == mode(fresh.passwords) == 0o600


def test_a_home_may_have_any_name_but_one_that_ends_the_databases_address(tmp_path: Path) -> None:
    odd = Deployment.locate(Home(tmp_path / "höme 50% #1; x"), {})
    odd.write_config(port=1, slots=2, schedules=False)
    address = make_url(read(odd)["database"]["sql_alchemy_conn"])
    assert address.database == str(odd.root / "airflow.db")
    asking = Deployment.locate(Home(tmp_path / "why?"), {})
    with pytest.raises(BadInput, match="why"):
        asking.write_config(port=1, slots=2, schedules=False)
    assert not asking.home.root.exists()


def test_the_environment_names_this_deployment_only(fresh: Deployment) -> None:
    environ = fresh.environ({"PATH": "/bin", "AIRFLOW__CORE__EXECUTOR": "Other", "_AIRFLOW_X": "1"})
    assert environ == {
        "PATH": "/bin",
        "AIRFLOW_HOME": str(fresh.root),
        "AIRFLOW_CONFIG": str(fresh.config_file),
        "EVPACK_HOME": str(fresh.home.root),
        "EVPACK_PROJECT": str(fresh.project),
    }


def test_quick_runs_have_a_database_of_their_own(fresh: Deployment) -> None:
    quick = Deployment.locate(fresh.home, {}, quick=True)
    assert quick.root != fresh.root
    assert quick.lock != fresh.lock


def test_a_project_without_dags_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="dags"):
        Deployment.locate(Home(tmp_path), {"EVPACK_PROJECT": str(tmp_path)})


def test_leftovers_of_a_killed_predecessor_are_stopped(fresh: Deployment) -> None:
    code = (
        "import subprocess, sys\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], process_group=0)\n"
        "print(inner.pid, flush=True)\n"
        "inner.wait()\n"
    )
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout is not None
    inner = int(leader.stdout.readline())
    start = start_of(leader.pid)
    leader.kill()
    leader.wait()
    assert start_of(inner) is not None
    fresh.state.write_text(json.dumps({"sessions": [{"name": "x", "sid": leader.pid, "start": start}]}))
    told: list[str] = []
    assert embedded.stop_leftovers(fresh, told.append) == 1
    until_gone(inner)
    assert len(told) == 1
    assert not fresh.state.exists()


def test_a_session_id_that_was_given_again_is_left_alone(fresh: Deployment) -> None:
    """In this boot to a later process than the one that was noted, or after the host was booted."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        boot, _, tick = str(start_of(other.pid)).partition("/")
        for start in (f"{boot}/{int(tick) - 100}", f"another boot/{tick}"):
            fresh.state.write_text(json.dumps({"sessions": [{"name": "x", "sid": other.pid, "start": start}]}))
            assert embedded.stop_leftovers(fresh) == 0
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_session_of_before_the_boot_has_no_members(fresh: Deployment) -> None:
    code = "import os, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(600)"
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout is not None
    stranger = psutil.Process(int(leader.stdout.readline()))
    leader.wait()
    try:
        fresh.state.write_text(json.dumps({"sessions": [{"name": "x", "sid": leader.pid, "start": "another boot/1"}]}))
        assert embedded.stop_leftovers(fresh) == 0 and stranger.is_running()
    finally:
        stranger.kill()


def test_a_clock_that_is_set_back_hides_no_leftover(fresh: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as ours:
        fresh.state.write_text(json.dumps({"sessions": [{"name": "x", "sid": ours.pid, "start": start_of(ours.pid)}]}))
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)
        assert embedded.stop_leftovers(fresh) == 1


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"sessions": []}'])
def test_a_damaged_state_file_is_no_obstacle(fresh: Deployment, text: str) -> None:
    fresh.state.write_text(text)
    assert embedded.stop_leftovers(fresh) == 0


def test_a_component_that_dies_shows_the_tail_of_its_log(fresh: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_PROJECT", str(fresh.project))
    (fresh.root / "airflow.db").write_text("this is no database")
    told = r"scheduler ended with code \d+\n(.*\n)*.*database"
    with pytest.raises(Transient, match=told), embedded.running(fresh, print):
        pytest.fail("it cannot have started")
    assert not fresh.state.exists()


def test_a_second_service_in_one_home_is_refused(fresh: Deployment) -> None:
    with FileLock(fresh.lock), pytest.raises(BadInput, match="already"), embedded.running(fresh, print, up=True):
        pytest.fail("it cannot have started")


def test_nobody_else_gets_the_port_before_the_server_listens() -> None:
    with embedded._reserved_port() as port, embedded._reserved_port() as other:
        assert port != other
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((embedded.HOST, port))
        with socket.create_server((embedded.HOST, port)) as server:  # allows what servers allow (SO_REUSEADDR)
            assert server.getsockname()[1] == port
            with socket.create_connection((embedded.HOST, port)):
                pass


def answering(handler: object) -> Client:
    return Client(Endpoint("http://a", "admin", "p"), httpx.MockTransport(handler))  # type: ignore[arg-type]


def test_the_client_logs_in_once_and_repeats_the_request() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "t"})
        if request.headers.get("Authorization") != "Bearer t":
            return httpx.Response(401)
        return httpx.Response(200, json={"state": "running"})

    with answering(handler) as client:
        assert client.run_state("d", "r") == "running"
        assert client.run_state("d", "r") == "running"
    assert seen.count("/auth/token") == 1


def test_runs_have_a_logical_date_so_that_the_older_goes_first() -> None:
    sent: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content)["logical_date"])
        return httpx.Response(200, json={})

    with answering(handler) as client:
        client.trigger("d", "first", {})
        client.trigger("d", "second", {})
    assert sent == sorted(set(sent))
    assert len(sent) == 2


def test_a_request_whose_answer_got_lost_is_not_refused_when_it_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evpack.airflow.client.time.sleep", lambda _: None)
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) == 1:
            raise httpx.ReadTimeout("no answer")
        return httpx.Response(409, json={"detail": "the run is there"})

    with answering(handler) as airflow:
        airflow.trigger("d", "r", {})
        assert asked == ["POST", "POST"]
        with pytest.raises(BadInput, match="the run is there"):
            airflow.trigger("d", "r", {})


def test_refused_parameters_are_the_operators_fault() -> None:
    refusing = answering(lambda _: httpx.Response(400, json={"detail": "'nope' is not one of"}))
    with refusing as client, pytest.raises(BadInput, match="'nope' is not one of"):
        client.trigger("d", "r", {"suite": "nope"})


def test_a_silent_server_has_no_health() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with answering(handler) as client:
        assert client.health() == {}


def test_pages_of_tasks_are_joined() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        page = [{"task_id": f"t{n}"} for n in range(offset, min(offset + 100, 130))]
        return httpx.Response(200, json={"task_instances": page, "total_entries": 130})

    with answering(handler) as client:
        assert len(client.tasks("d", "r")) == 130


def test_no_airflow_variable_of_the_test_session_leaks(fresh: Deployment) -> None:
    assert os.environ["AIRFLOW_HOME"] != fresh.environ()["AIRFLOW_HOME"]


def test_a_deployment_without_the_order_hook_is_told(fresh: Deployment) -> None:
    fresh.write_config(port=1, slots=2, schedules=False)
    assert fresh.differences(2) == []
    fresh.policies.unlink()
    assert "small_first" in fresh.differences(2)[0]
    fresh.policies.write_text("# our own policies\nfrom evpack.airflow.weights import task_instance_mutation_hook\n")
    assert fresh.differences(2) == []


def test_throttles_follow_the_pools_and_the_port_stays(fresh: Deployment) -> None:
    fresh.write_config(port=1234, slots=2, schedules=False)
    told = fresh.differences(9)
    assert len(told) == 3 and all("documented is 15" in line for line in told)
    fresh.write_for(9)
    assert fresh.differences(9) == []
    assert (read(fresh)["api"]["port"], read(fresh)["scheduler"]["use_job_schedule"]) == ("1234", "False")

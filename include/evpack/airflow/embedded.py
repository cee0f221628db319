"""An Airflow that one command starts and stops: scheduler and API server on SQLite, loopback only.

Every component runs in a session of its own, and whatever it starts stays in that session. So stopping is
one rule (end all processes of the recorded sessions), for a clean exit, for Ctrl-C and for what a killed
predecessor left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from evpack.airflow.client import Client, Endpoint
from evpack.airflow.config import HOST, USER, Deployment
from evpack.errors import BadInput, Transient
from evpack.processes import interrupted_by, same_boot, start_of
from evpack.publishing import write_atomic
from evpack.runtime.abandoned import reap_abandoned
from evpack.runtime.pools import pool_slots
from evpack.runtime.process import die_with_parent

PREFERRED_PORT = 8080
START_S = 600.0
"""Longest wait until scheduler and API server are healthy; only there so that a hang ends. Below 15 s on two cores."""
STOP_S = 5.0
"""Seconds the processes may take after SIGTERM before SIGKILL; idle ones need 2, a step cleans up within 3."""
POLL_S = 0.2
_TAIL_LINES = 30
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

Say = Callable[[str], None]
"""Prints one line for people."""


@dataclass
class RunningAirflow:
    """A healthy Airflow: ours to stop, or one that `evpack airflow up` keeps."""

    endpoint: Endpoint
    deployment: Deployment
    ours: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Components started by this process, by name; empty when attached."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """Their sessions, as embedded.json holds them."""

    def runs(self) -> bool:
        """Whether every component we started still runs."""
        return all(process.poll() is None for process in self.ours.values())

    def check(self) -> None:
        """Look whether the components we started still run.

        Raises:
            Transient: naming the one that died, with the tail of its log.
        """
        for name, process in self.ours.items():
            if process.poll() is not None:
                raise Transient(
                    f"Airflow's {name} ended with code {process.returncode}\n{_tail(_log_file(self.deployment, name))}",
                    "see the log above; `evpack campaign resume RUN_DIR` goes on where it stopped",
                )


@contextmanager
def running(deployment: Deployment, say: Say, *, up: bool = False) -> Iterator[RunningAirflow]:
    """Start Airflow, or attach to the one `evpack airflow up` runs; stop on the way out what was started.

    Args:
        say: receives what a person should know while waiting.
        up: run as a service: scheduled DAGs start by themselves, edited DAG files are noticed, unfinished runs of an
            earlier life go on, and campaigns may attach.

    Raises:
        BadInput: with `up`, when this home has a running Airflow already.
        Transient: when a component does not come up; holds the tail of its log.
    """
    deployment.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(deployment.lock)
    attached = _lock_or_attach(deployment, lock, say, up)
    if attached is not None:
        with interrupted_by(*_ENDING):
            yield RunningAirflow(attached, deployment)
        return
    with _stopping(deployment, lock, say) as airflow:
        _start(airflow, say, up)
        yield airflow


@contextmanager
def dags_test(deployment: Deployment, dag_id: str, conf: Mapping[str, Any], say: Say) -> Iterator[RunningAirflow]:
    """`airflow dags test` as the only component: one run, task after task, no scheduler and no server."""
    deployment.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(deployment.lock)
    _lock_or_attach(deployment, lock, say, up=False)
    with _stopping(deployment, lock, say) as airflow:
        deployment.write_config(port=PREFERRED_PORT, slots=1, schedules=False)
        deployment.logs.mkdir(parents=True, exist_ok=True)
        test = ["dags", "test", dag_id, "--conf", json.dumps(conf)]
        _launch(airflow, "dags-test", ["-m", "evpack.airflow.prepare", "--close-runs", "--then", *test], up=False)
        yield airflow


@contextmanager
def _stopping(deployment: Deployment, lock: FileLock, say: Say) -> Iterator[RunningAirflow]:
    """With the lock held: first stop what an earlier life left, at the end what this one started."""
    try:
        stop_leftovers(deployment, say)
        reap_abandoned(deployment.home, say)
        with interrupted_by(*_ENDING), _reserved_port() as port:
            airflow = RunningAirflow(_endpoint(deployment, port), deployment)
            try:
                yield airflow
            finally:
                stop_leftovers(deployment)
                for process in airflow.ours.values():
                    process.wait()
                reap_abandoned(deployment.home, say)
    finally:
        lock.release()


def stop_leftovers(deployment: Deployment, say: Say | None = None) -> int:
    """End every process of the sessions recorded in embedded.json; returns how many there were."""
    sessions = {int(entry["sid"]): str(entry["start"]) for entry in _state(deployment).get("sessions", [])}
    found = _members(sessions)
    if found and say is not None:
        say(f"stopping {len(found)} processes that an earlier Airflow left behind")
    for process in found:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while (alive := _members(sessions)) and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_S)
    deployment.state.unlink(missing_ok=True)
    return len(found)


def _lock_or_attach(deployment: Deployment, lock: FileLock, say: Say, up: bool) -> Endpoint | None:
    """Take the lock, or the endpoint of a healthy shared Airflow. Waits for a campaign that runs by itself."""
    told = False
    while True:
        try:
            lock.acquire(timeout=0 if not told else 2)
            return None
        except Timeout:
            state = _state(deployment)
            if up:
                raise BadInput(
                    f"an Airflow runs in {deployment.root} already: {state.get('url', 'starting')}",
                    "stop it first (Ctrl-C in its terminal), or use it",
                ) from None
            endpoint = _endpoint(deployment, state.get("port", 0))
            if state.get("up"):
                with Client(endpoint) as client:
                    if client.health().get("scheduler") == "healthy":
                        return endpoint
            if not told:
                told = True
                owner = f"{deployment.home.root} (process {state.get('owner', '?')})"
                say(
                    f"the Airflow of {owner} does not answer yet; waiting for it"
                    if state.get("up")
                    else f"another campaign runs in {owner}; waiting for its end (to run several at once start "
                    "`evpack airflow up` in another terminal first)"
                )


def _start(airflow: RunningAirflow, say: Say, up: bool) -> None:
    deployment, endpoint = airflow.deployment, airflow.endpoint
    port = int(endpoint.url.rpartition(":")[2])
    deployment.write_config(port=port, slots=sum(pool_slots().values()), schedules=up)
    deployment.logs.mkdir(parents=True, exist_ok=True)
    ready = deployment.root / "ready"
    ready.unlink(missing_ok=True)
    scheduler = ["-m", "evpack.airflow.prepare", "--ready-file", str(ready)]
    if not up:
        scheduler.append("--close-runs")
    deadline = time.monotonic() + START_S
    _launch(airflow, "scheduler", [*scheduler, "--then", "scheduler", "--skip-serve-logs"], up)
    _wait(airflow, "scheduler", ready.exists, deadline)
    for line in _log_file(deployment, "scheduler").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("closed: "):
            say(f"{line.removeprefix('closed: ')} was left unfinished by an earlier Airflow and counts as failed now")
    _launch(airflow, "api-server", ["-m", "airflow", "api-server", "--workers", "1"], up)
    if up:
        _launch(airflow, "dag-processor", ["-m", "airflow", "dag-processor"], up)
    with Client(endpoint) as client:
        _wait(airflow, "api-server", lambda: client.health().get("scheduler") == "healthy", deadline)


def _launch(airflow: RunningAirflow, name: str, arguments: list[str], up: bool) -> None:
    """Start a component in a session of its own and record the session at once."""
    deployment = airflow.deployment
    with _log_file(deployment, name).open("wb") as log:
        airflow.ours[name] = subprocess.Popen(
            [sys.executable, *arguments],
            env=deployment.environ(),
            cwd=deployment.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
    process = airflow.ours[name]
    airflow.sessions.append({"name": name, "sid": process.pid, "start": start_of(process.pid)})
    port = int(airflow.endpoint.url.rpartition(":")[2])
    document = {"owner": os.getpid(), "url": airflow.endpoint.url, "port": port, "up": up}
    document["sessions"] = airflow.sessions
    write_atomic(deployment.state, json.dumps(document).encode(), mode=0o600)


def _wait(airflow: RunningAirflow, name: str, condition: Callable[[], bool], deadline: float) -> None:
    while not condition():
        airflow.check()
        if time.monotonic() > deadline:
            raise Transient(
                f"Airflow's {name} was not ready after {START_S:.0f} s\n{_tail(_log_file(airflow.deployment, name))}",
                "see the log above; a busy machine may need a second try",
            )
        time.sleep(POLL_S)


def _endpoint(deployment: Deployment, port: int) -> Endpoint:
    return Endpoint(f"http://{HOST}:{port}", USER, deployment.password())


def endpoint_of(deployment: Deployment) -> Endpoint | None:
    """Where the Airflow of this home answers, None when none is recorded as running."""
    state = _state(deployment)
    return _endpoint(deployment, int(state["port"])) if state.get("port") else None


@contextmanager
def _reserved_port() -> Iterator[int]:
    """The preferred port when nobody has it, else any free one. On Linux nobody else gets it until the block ends.

    Bound here, before SO_REUSEADDR is set, it is given to no other socket; with SO_REUSEADDR here and there, as all
    servers set it, the API server may still listen on it, because nobody listens here.
    """
    for port in (PREFERRED_PORT, 0):
        with socket.socket() as place:
            try:
                place.bind((HOST, port))
            except OSError:
                continue
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found = int(place.getsockname()[1])
            if sys.platform != "linux":
                place.close()
            yield found
            return
    raise Transient(f"no free port on {HOST}")


def _members(sessions: dict[int, str]) -> list[psutil.Process]:
    """Live processes of these sessions, by id and their leader's start (`processes.start_of`).

    Within a boot an id is not given again while a session of that id has a member. So where the leader is gone, who is
    in the session belongs to it; where a leader of another start is there, or the host was booted, it is a stranger's.
    """
    ours = {sid: start for sid, start in sessions.items() if start_of(sid) in (None, start)}
    found = []
    for process in psutil.process_iter():
        try:
            leader = ours.get(os.getsid(process.pid))
        except (ProcessLookupError, PermissionError):
            continue
        start = start_of(process.pid) if leader is not None else None
        if leader is not None and start is not None and same_boot(start, leader):
            found.append(process)
    return found


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return


def _state(deployment: Deployment) -> dict[str, Any]:
    try:
        document = json.loads(deployment.state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _log_file(deployment: Deployment, name: str) -> Path:
    return deployment.logs / f"{name}.log"


def _tail(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL_LINES:])

"""Containers on a Docker engine: run one and see its end, stop it, remove those that nobody looks after."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evpack.errors import BadInput, Transient
from evpack.home import Home
from evpack.runtime.docker_spec import LABEL, ContainerSpec, Supervisor
from evpack.runtime.process import GRACE_S, LONGEST_LINE

if TYPE_CHECKING:
    from docker import APIClient

TIMEOUT_S = 60
"""Longest wait for an answer of the engine; streams of output wait without end."""
MAX_OUTPUT = 50_000_000
"""Characters of a container's output that reach the logs of task and step, as many bytes as the engine itself keeps."""
_STOPPED = 143
"""128 + SIGTERM: what is told of a container that was stopped before it could tell itself."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    memory_killed: bool
    """Whether the kernel killed in it for its memory limit."""


def connect() -> APIClient:
    """The engine that DOCKER_HOST names, else the local one.

    Raises:
        BadInput: when none answers.
    """
    import docker

    try:
        client = docker.from_env(timeout=TIMEOUT_S).api
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise BadInput(
            f"no Docker engine answers ({error})",
            "start it, or name its socket by DOCKER_HOST; its user must have access",
        ) from error
    return client


class RunningContainer:
    """One container, from its creation to its removal."""

    def __init__(self, client: APIClient, spec: ContainerSpec) -> None:
        self._client = client
        self._spec = spec
        self._id: str | None = None
        self._stopped = False

    def run(self, emit: Callable[[str], None]) -> Ended:
        """Create and start it, hand each line of its output to `emit`, wait for its end, remove it.

        Raises:
            BadInput: when the engine refuses: no such image, no such path on its host, no GPU runtime.
            Transient: when the engine fails or goes away.
        """
        from docker.errors import APIError
        from requests.exceptions import RequestException

        try:
            return self._run(emit)
        except APIError as error:
            if self._stopped:
                return Ended(_STOPPED, memory_killed=False)
            raise _refused(error, self._spec) from error
        except (RequestException, OSError) as error:
            raise Transient(f"the Docker engine went away ({error})", "see the engine's log") from error
        finally:
            self._remove()

    def stop(self) -> None:
        """SIGTERM, SIGKILL after the grace of a step, and gone. Safe to call twice, and from a signal handler."""
        self._stopped = True
        if self._id is not None:
            with suppress(Transient), _answering():
                self._client.stop(self._id, timeout=int(GRACE_S))
            self._remove()

    def _run(self, emit: Callable[[str], None]) -> Ended:
        client, spec = self._client, self._spec
        self._id = client.create_container(
            spec.image,
            command=spec.command,
            entrypoint=spec.entrypoint,
            environment=spec.environment,
            user=spec.user,
            labels=spec.labels,
            hostname=socket.gethostname()[:63],
            host_config=client.create_host_config(**spec.host_config()),
        )["Id"]
        output = client.attach(self._id, stdout=True, stderr=True, stream=True)
        if self._stopped:
            return Ended(_STOPPED, memory_killed=False)
        client.start(self._id)
        for line in _bounded(_lines(output)):
            emit(line)
        code = int(client.wait(self._id)["StatusCode"])
        return Ended(code, bool(client.inspect_container(self._id)["State"]["OOMKilled"]))

    def _remove(self) -> None:
        if self._id is not None:
            with suppress(Transient):  # whoever looks for abandoned containers finds it
                remove(self._client, self._id)


def remove(client: APIClient, container: str) -> None:
    """Remove a container, running or not; one that is gone or about to go is fine, and so is a dead one that stays.

    Raises:
        Transient: when it may still run.
    """
    from docker.errors import NotFound

    try:
        with _answering():
            client.remove_container(container, force=True, v=True)
    except Transient:
        with suppress(NotFound), _answering(but=NotFound):  # somebody else may be removing it
            client.wait(container, timeout=GRACE_S, condition="not-running")


def ours(client: APIClient, home: Home, **labels: str) -> list[dict[str, Any]]:
    """Containers of this deployment in any state, as the engine lists them.

    Raises:
        Transient: when the engine fails.
    """
    wanted = {"home": str(home.root), **labels}
    filters = {"label": [f"{LABEL}{key}={value}" for key, value in wanted.items()]}
    with _answering():
        found: list[dict[str, Any]] = client.containers(all=True, filters=filters)
    return found


def reap(client: APIClient, home: Home) -> list[str]:
    """Remove the containers whose supervisor is gone (its task was killed, or the whole of Airflow).

    Returns:
        What was removed, a line each.

    Raises:
        Transient: when the engine fails.
    """
    lines = []
    for container in ours(client, home):
        labels = container["Labels"]
        supervisor = Supervisor.parse(labels.get(f"{LABEL}supervisor", ""))
        if supervisor is None or supervisor.is_gone():
            remove(client, container["Id"])
            lines.append(f"container {container['Id'][:12]} of {labels.get(f'{LABEL}step', 'no step')}")
    return lines


@contextmanager
def _answering(but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn what the SDK raises, but for one kind, into `Transient`."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    try:
        yield
    except but:
        raise
    except (APIError, RequestException) as error:
        raise Transient(f"the Docker engine failed ({error})", "see the engine's log") from error


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines of a stream that comes in any pieces; a longer one than `LONGEST_LINE` in several."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode("utf-8", errors="replace").rstrip("\r") for line in whole)
        while len(rest) > LONGEST_LINE:
            yield rest[:LONGEST_LINE].decode("utf-8", errors="replace")
            rest = rest[LONGEST_LINE:]
    if rest:
        yield rest.decode("utf-8", errors="replace")


def _bounded(lines: Iterable[str]) -> Iterator[str]:
    """The lines up to `MAX_OUTPUT` characters; the rest is read, so that the container can go on, and left out."""
    left = MAX_OUTPUT
    for line in lines:
        if left > 0:
            left -= len(line) + 1
            yield line if left > 0 else f"(more than {MAX_OUTPUT} characters of output: what follows is left out)"


def _refused(error: Any, spec: ContainerSpec) -> BadInput | Transient:
    """What the engine's refusal means."""
    text = str(error.explanation or error)
    if error.status_code == 404 and "image" in text.lower():
        return BadInput(f"the engine has no image {spec.image}", "build or load it (`make worker-image`)")
    if "device driver" in text or "capabilities: [[gpu]]" in text:
        return BadInput(f"the engine gives no GPUs to containers: {text}", "install the NVIDIA container toolkit")
    if error.status_code == 400:
        return BadInput(f"the engine refuses the container: {text}", "see `evpack doctor`")
    return Transient(f"the Docker engine failed: {text}", "see the engine's log")

"""Whether containers work here as steps need them: a token goes through one and comes back."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from evpack import __version__
from evpack.errors import BadInput
from evpack.home import Home
from evpack.runtime.docker_engine import RunningContainer
from evpack.runtime.docker_spec import ContainerLimits, ContainerSpec, Mount, own_labels

if TYPE_CHECKING:
    from docker import APIClient

_SCRIPT = (
    "import pathlib, sys, evpack; place = pathlib.Path(sys.argv[1]);"
    "(place / 'answer').write_text((place / 'token').read_text()); print(evpack.__version__)"
)
_MEND_PATH = (
    "give the engine EVPACK_HOME at the same absolute path as here: an Airflow in a container mounts it so, a remote "
    "engine needs a shared file system"
)


def probe(client: APIClient, limits: ContainerLimits, home: Home) -> str:
    """Write a token below EVPACK_HOME, have a container read it and write it back.

    Returns:
        What was seen, for people.

    Raises:
        BadInput: when the container does not see what is here, cannot write as its owner, or holds another evpack.
        Transient: when the engine fails.
    """
    token, lines = secrets.token_hex(16), list[str]()
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home.create().root) as directory:
        place = Path(directory)
        (place / "token").write_text(token, encoding="ascii")
        owner = place.stat()
        spec = ContainerSpec(
            image=limits.image,
            entrypoint=["tini", "--", "python3", "-c", _SCRIPT],
            command=[str(place)],
            environment={},
            mounts=[Mount(place, writable=True)],
            user=f"{owner.st_uid}:{owner.st_gid}",
            labels=own_labels(home, {"step": "doctor"}),
            limits=limits,
        )
        ended = RunningContainer(client, spec).run(lines.append)
        answer = place / "answer"
        if ended.code != 0 or not answer.is_file() or answer.read_text(encoding="ascii") != token:
            said = lines[-1] if lines else f"exit {ended.code}"
            raise BadInput(f"a container does not see {place} as it is here ({said})", _MEND_PATH)
        if (uid := answer.stat().st_uid) != owner.st_uid:
            raise BadInput(f"what a container writes as user {owner.st_uid} belongs to {uid}", "see user namespaces")
    if lines[-1:] != [__version__]:
        raise BadInput(
            f"the worker image holds evpack {lines[-1] if lines else 'nothing'}, here is {__version__}",
            "build it again (`make worker-image`) and set EVPACK_WORKER_IMAGE",
        )
    return f"a container of {limits.image[:19]} reads and writes below {home.root}"

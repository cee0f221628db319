"""Which runtime a deployment runs its steps with; light, because Airflow's processes ask when they parse the DAGs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from evpack.errors import BadInput
from evpack.plan.hosts import chosen_hosts

RUNTIME_ENV = "EVPACK_RUNTIME"
PROCESS = "process"
DOCKER = "docker"


def chosen_runtime(environ: Mapping[str, str] | None = None) -> str:
    """``process`` (when nothing is said) or ``docker``.

    Args:
        environ: where EVPACK_RUNTIME is looked for; this process's environment when None.

    Raises:
        BadInput: when it names no runtime.
    """
    runtime = (os.environ if environ is None else environ).get(RUNTIME_ENV, "").strip() or PROCESS
    if runtime not in (PROCESS, DOCKER):
        raise BadInput(f"{RUNTIME_ENV}={runtime!r} is no runtime", f"choose {PROCESS} or {DOCKER}")
    return runtime


def check_runtime() -> None:
    """Refuse a deployment that cannot run a single step: planning and `campaign run` ask, before anything is started.

    Of several hosts nothing is asked: steps run where the engine and the image of each are.

    Raises:
        BadInput: when EVPACK_RUNTIME names no runtime; with containers, when no engine answers or no image is pinned.
    """
    if chosen_runtime() == DOCKER and not chosen_hosts():
        from evpack.runtime.docker_engine import connect
        from evpack.runtime.docker_spec import ContainerLimits

        ContainerLimits.of(os.environ)
        connect()

"""Which runtime a deployment runs its steps with; light, because Airflow's processes ask when they parse the DAGs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from evpack.errors import BadInput

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

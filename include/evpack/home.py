"""EVPACK_HOME: what belongs to a deployment and outlives a campaign. The only module that knows its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import BadInput
from evpack.files import expanded
from evpack.sealed import check_outside

ENV_NAME = "EVPACK_HOME"
DEFAULT_NAME = ".evpack"
"""Without EVPACK_HOME the deployment lives in this directory of the current one."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_+-]+")


@dataclass(frozen=True)
class Home:
    """Paths of one deployment."""

    root: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str] | None = None) -> Home:
        """The home named by EVPACK_HOME, else ``./.evpack`` (absolute, not created).

        Raises:
            BadInput: when it begins with a user that is not known.
        """
        value = (os.environ if environ is None else environ).get(ENV_NAME, "").strip()
        return cls(expanded(value or DEFAULT_NAME).absolute())

    @property
    def hf(self) -> Path:
        """Hugging Face caches, when HF_HOME does not say otherwise."""
        return self.root / "hf"

    @property
    def models(self) -> Path:
        """Local checkpoints that were converted once (demo model)."""
        return self.root / "models"

    @property
    def texts(self) -> Path:
        """Local evaluation texts."""
        return self.root / "texts"

    @property
    def model_revisions(self) -> Path:
        """Pinned revisions of the deployment."""
        return self.root / "model_revisions.json"

    @property
    def keys(self) -> Path:
        """The deployment's signing key, directory mode 0700."""
        return self.root / "keys"

    @property
    def leases(self) -> Path:
        """Host-local device locks."""
        return self.root / "leases"

    @property
    def pools(self) -> Path:
        """What `evpack airflow setup` created."""
        return self.root / "pools.json"

    @property
    def notifications(self) -> Path:
        """What operators were told, one JSON line each."""
        return self.root / "notifications.jsonl"

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME of the embedded Airflow."""
        return self.root / "airflow"

    @property
    def runs(self) -> Path:
        """Run directories by DAG."""
        return self.root / "runs"

    def run_dir(self, dag_id: str, run_id: str) -> Path:
        """Run directory of a DAG run; ids are sanitised so that they cannot leave `runs`."""
        return self.runs / safe_name(dag_id) / safe_name(run_id)

    def create(self) -> Home:
        """Make the directory.

        Raises:
            BadInput: when it cannot be written, or would lie in a sealed pack.
        """
        check_outside(self.root / "keys", ENV_NAME)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(13, "not writable")
        except OSError as error:
            raise BadInput(
                f"{ENV_NAME} {self.root} cannot be written ({error.strerror})",
                f"set {ENV_NAME} to a writable directory",
            ) from error
        return self


def safe_name(text: str) -> str:
    """A file name of letters, digits, ``_ + -`` made from any id, never empty, ``.`` or ``..``."""
    return _UNSAFE.sub("_", text).strip("_") or "unnamed"

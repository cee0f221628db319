"""The one Airflow configuration of this project, written to ``EVPACK_HOME/airflow/airflow.cfg``.

A file and not variables, so that its secrets are in no process's environment and the `airflow` command sees
the same deployment with nothing but AIRFLOW_HOME set.
"""

from __future__ import annotations

import configparser
import io
import json
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import BadInput
from evpack.files import expanded
from evpack.home import Home
from evpack.plan.lanes import MAX_MAP_LENGTH
from evpack.publishing import write_atomic

PROJECT_ENV = "EVPACK_PROJECT"
"""Directory that holds dags/ and plugins/, when they do not stand beside the package."""

CAMPAIGN_DAG = "evidence_campaign"
NIGHTLY_DAG = "evidence_nightly"
WEIGHT_RULE = "evpack_plugin.SmallFirst"
"""The strategy of a step's weight, by name: an instance does not survive the serialisation of a mapped task."""

USER = "admin"
HOST = "127.0.0.1"

HOOK = "from evpack.airflow.weights import task_instance_mutation_hook"
LOCAL_SETTINGS = f"""# Written by evpack: the order of a run (PACK_ORDER) across its lanes.
{HOOK}

__all__ = ["task_instance_mutation_hook"]
"""
"""Airflow's place for cluster policies, imported by all its processes."""

LOCK_WAIT_S = 60
"""Seconds a process waits for the database's lock. SQLite's own 5 s are not enough on a crowded machine: there a
scheduler died of a lock."""

PARSE_S = 300
"""Longest time to read a DAG file, most of which are Airflow's imports: seconds, on a crowded machine more than the 30
that Airflow allows."""

LOST_S = 300
"""Silence after which a task counts as lost with its host and is tried again. Its supervisor speaks every 5 s, whatever
the step does, so the reference's 2,700 s (WORKER_TIMEOUT) would only make that later."""

SPARE_TASKS = 6
"""Tasks beyond the pools' slots that may run at once: selections, plan, verdict."""

_SECRETS = (("core", "fernet_key", 32), ("api", "secret_key", 32), ("api_auth", "jwt_secret", 64))
"""Section, option and random bytes; a Fernet key has 32, the token signature (SHA-512) wants 64."""


@dataclass(frozen=True)
class Deployment:
    """Paths of an embedded Airflow."""

    home: Home
    project: Path
    quick: bool = False
    """The one of `airflow dags test`: a database of its own, so that no scheduler takes its runs up."""

    @classmethod
    def locate(cls, home: Home, environ: Mapping[str, str] | None = None, *, quick: bool = False) -> Deployment:
        """The deployment of a home; the project is found from EVPACK_PROJECT or from where the package lies.

        Raises:
            BadInput: when no dags/ directory can be found.
        """
        named = (os.environ if environ is None else environ).get(PROJECT_ENV, "").strip()
        project = expanded(named).absolute() if named else Path(__file__).resolve().parents[3]
        if not (project / "dags" / "evidence_campaign.py").is_file():
            raise BadInput(
                f"{project} has no dags/evidence_campaign.py",
                f"set {PROJECT_ENV} to the directory of the project that holds dags/ and plugins/",
            )
        return cls(home, project, quick)

    @property
    def root(self) -> Path:
        """AIRFLOW_HOME."""
        return self.home.airflow / "quick" if self.quick else self.home.airflow

    @property
    def config_file(self) -> Path:
        """airflow.cfg, mode 0600 because it holds secrets."""
        return self.root / "airflow.cfg"

    @property
    def policies(self) -> Path:
        """Airflow's cluster policies; holds the hook that applies a run's order."""
        return self.root / "config" / "airflow_local_settings.py"

    @property
    def passwords(self) -> Path:
        """User and password of the UI, mode 0600."""
        return self.root / "passwords.json"

    @property
    def logs(self) -> Path:
        """Logs of Airflow's components and tasks."""
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the embedded Airflow."""
        return self.root / "embedded.lock"

    @property
    def state(self) -> Path:
        """Sessions, address and owner of the running (or last) embedded Airflow."""
        return self.root / "embedded.json"

    def environ(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for Airflow's processes: the caller's without any Airflow variable, with this AIRFLOW_HOME."""
        environ = os.environ if base is None else base
        kept = {name: value for name, value in environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
        return {
            **kept,
            "AIRFLOW_HOME": str(self.root),
            "AIRFLOW_CONFIG": str(self.config_file),
            "EVPACK_HOME": str(self.home.root),
            PROJECT_ENV: str(self.project),
        }

    def password(self) -> str:
        """The UI password, made on first use."""
        if not self.passwords.is_file():
            document = json.dumps({USER: secrets.token_urlsafe(18)}).encode()
            write_atomic(self.passwords, document, mode=0o600)
        return str(json.loads(self.passwords.read_text(encoding="utf-8"))[USER])

    def write_config(self, *, port: int, slots: int, schedules: bool) -> None:
        """Write airflow.cfg; secrets of an earlier one are kept.

        Args:
            port: loopback port of the API server.
            slots: steps that may run at once (the pools' slots together).
            schedules: whether DAGs with a schedule start by themselves.

        Raises:
            BadInput: when the home's path cannot be part of the database's address.
        """
        if "?" in str(self.root):
            raise BadInput(
                f"{self.home.root} has a ? in it, at which the address of Airflow's database would end",
                "set EVPACK_HOME to a directory without one",
            )
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.password()
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_dict(self._options(port, slots, schedules))
        old = self._read()
        for section, option, size in _SECRETS:
            value = old.get(section, option, fallback="") or urlsafe_b64encode(secrets.token_bytes(size)).decode()
            parser.set(section, option, value)
        text = io.StringIO()
        parser.write(text)
        write_atomic(self.config_file, text.getvalue().replace("%", "%%").encode(), mode=0o600)
        write_atomic(self.policies, LOCAL_SETTINGS.encode())

    def write_for(self, slots: int) -> None:
        """Write airflow.cfg for the pools there are now; port and schedules stay as an earlier one has them."""
        port, schedules = self._as_written()
        self.write_config(port=port, slots=slots, schedules=schedules)

    def differences(self, slots: int) -> list[str]:
        """How the deployment differs from what `write_for` would write, a line each.

        Args:
            slots: of the pools together.
        """
        found = self._read()
        policies = self.policies.read_text(encoding="utf-8") if self.policies.is_file() else ""
        lines = [] if HOOK in policies else [f"{self.policies} lacks `{HOOK}`: every run is small_first across lanes"]
        port, schedules = self._as_written()
        return lines + [
            f"airflow.cfg: [{section}] {option} is {found.get(section, option, fallback='not set')}, "
            f"documented is {value}"
            for section, options in self._options(port, slots, schedules).items()
            for option, value in options.items()
            if found.get(section, option, fallback=None) != value.replace("%", "%%")
        ]

    def _read(self) -> configparser.ConfigParser:
        found = configparser.ConfigParser(interpolation=None)
        found.read(self.config_file)
        return found

    def _as_written(self) -> tuple[int, bool]:
        """Port and schedules of airflow.cfg, or what is usual."""
        found = self._read()
        port = found.getint("api", "port", fallback=8080)
        return port, found.getboolean("scheduler", "use_job_schedule", fallback=True)

    @staticmethod
    def needed(slots: int) -> dict[tuple[str, str], int]:
        """Options that any Airflow for campaigns needs, with the least that will do; all others are free.

        Args:
            slots: of the pools together.
        """
        tasks = slots + SPARE_TASKS
        throttles = (("core", "parallelism"), ("core", "max_active_tasks_per_dag"), ("scheduler", "max_tis_per_query"))
        return {("core", "max_map_length"): MAX_MAP_LENGTH, **dict.fromkeys(throttles, tasks)}

    def _options(self, port: int, slots: int, schedules: bool) -> dict[str, dict[str, str]]:
        tasks = str(slots + SPARE_TASKS)
        return {
            "core": {
                "dags_folder": str(self.project / "dags"),
                "plugins_folder": str(self.project / "plugins"),
                "executor": "LocalExecutor",
                "load_examples": "False",
                # A run triggered on a paused DAG waits without a word.
                "dags_are_paused_at_creation": "False",
                "max_map_length": str(MAX_MAP_LENGTH),
                "parallelism": tasks,
                "max_active_tasks_per_dag": tasks,
                "simple_auth_manager_users": f"{USER}:admin",
                "simple_auth_manager_passwords_file": str(self.passwords),
                "execution_api_server_url": f"http://{HOST}:{port}/execution/",
                "dagbag_import_timeout": str(PARSE_S),
            },
            "workers": {
                # Airflow's 5 s are less than the server itself waits for its database.
                "execution_api_timeout": str(LOCK_WAIT_S),
                # How soon a clear or a stop reaches a step.
                "min_heartbeat_interval": "5",
            },
            "dag_processor": {"dag_file_processor_timeout": str(PARSE_S)},
            "database": {"sql_alchemy_conn": f"sqlite:///{self.root / 'airflow.db'}?timeout={LOCK_WAIT_S}"},
            "logging": {"base_log_folder": str(self.logs), "colored_console_log": "False"},
            "scheduler": {
                # Seconds between loops that found nothing to do; the default of 1 s would be paid by every task.
                "scheduler_idle_sleep_time": "0.2",
                "max_tis_per_query": tasks,
                "use_job_schedule": str(schedules),
                "task_instance_heartbeat_timeout": str(LOST_S),
            },
            "api": {
                "host": HOST,
                "port": str(port),
                "base_url": f"http://{HOST}:{port}",
                "workers": "1",
                "expose_config": "False",
                "instance_name": "evpack",
            },
            "api_auth": {},
        }

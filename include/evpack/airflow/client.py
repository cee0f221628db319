"""What this project asks of Airflow's REST API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx

from evpack.airflow.config import LOCK_WAIT_S
from evpack.errors import BadInput, Transient

FINISHED = frozenset({"success", "failed"})
"""Terminal states of a DAG run."""

_TIMEOUT_S = LOCK_WAIT_S + 30.0
"""Longer than the server itself waits for its database, so that what it answers is heard."""
_TRIES = 5
"""Tries of a request while the server is busy or starting."""


@dataclass(frozen=True)
class Endpoint:
    """Where an Airflow answers."""

    url: str
    user: str
    password: str

    def run_url(self, dag_id: str, run_id: str) -> str:
        """The UI's page of a DAG run."""
        return f"{self.url}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


class Client:
    """A logged-in session; use as a context manager."""

    def __init__(self, endpoint: Endpoint, transport: httpx.BaseTransport | None = None) -> None:
        self._endpoint = endpoint
        self._http = httpx.Client(
            base_url=endpoint.url, timeout=_TIMEOUT_S, transport=transport, trust_env=False, follow_redirects=False
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> dict[str, str | None]:
        """Status by component (``healthy``, ``unhealthy``, None when absent); empty when nothing answers."""
        try:
            answer = self._http.get("/api/v2/monitor/health", timeout=10.0)
            return {name: part["status"] for name, part in answer.json().items()} if answer.is_success else {}
        except (httpx.HTTPError, ValueError):
            return {}

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """Start a DAG run. It gets a logical date, by which Airflow lets the older of two runs go first.

        Raises:
            BadInput: when Airflow refuses the parameters, with its words.
            Transient: when the server does not answer.
        """
        body = {"dag_run_id": run_id, "conf": dict(conf), "logical_date": datetime.now(UTC).isoformat()}
        self._request("POST", f"/api/v2/dags/{quote(dag_id)}/dagRuns", body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of a DAG run: queued, running, success, failed.

        Raises:
            Transient: when the server does not answer.
        """
        answer = self._request("GET", f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id)}")
        return str(answer["state"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances (task_id, map_index, state, try_number, priority_weight, pool, dates ...)."""
        path = f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id)}/taskInstances"
        found: list[dict[str, Any]] = []
        while True:
            page = self._request("GET", f"{path}?limit=100&offset={len(found)}")
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def pools(self) -> dict[str, int]:
        """Slots of every pool by its name.

        Raises:
            Transient: when the server does not answer.
        """
        return {pool["name"]: pool["slots"] for pool in self._request("GET", "/api/v2/pools?limit=100")["pools"]}

    def clear(self, dag_id: str, run_id: str, tasks: list[str | tuple[str, int]]) -> None:
        """Clear task instances, downstream ones too, as the UI's dialog does."""
        body = {
            "dag_run_id": run_id,
            "task_ids": [list(task) if isinstance(task, tuple) else task for task in tasks],
            "dry_run": False,
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self._request("POST", f"/api/v2/dags/{quote(dag_id)}/clearTaskInstances", body)

    def stop_run(self, dag_id: str, run_id: str) -> None:
        """Fail a DAG run; its running tasks are asked to stop."""
        self._request("PATCH", f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id)}", {"state": "failed"})

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.5 * 2**attempt)
            try:
                answer = self._http.request(method, path, json=body)
                if answer.status_code == httpx.codes.UNAUTHORIZED:
                    self._login()
                    answer = self._http.request(method, path, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if answer.is_server_error:
                problem = f"HTTP {answer.status_code}"
                continue
            if answer.status_code == httpx.codes.CONFLICT and problem:
                return None  # an earlier try was heard, its answer was not
            if answer.is_client_error:
                raise BadInput(f"Airflow refuses {method} {path}: {_detail(answer)}", "mend the named parameter")
            return answer.json() if answer.content else None
        raise Transient(f"Airflow at {self._endpoint.url} does not answer {method} {path} ({problem})")

    def _login(self) -> None:
        body = {"username": self._endpoint.user, "password": self._endpoint.password}
        answer = self._http.post("/auth/token", json=body)
        if not answer.is_success:
            raise BadInput(
                f"Airflow at {self._endpoint.url} refuses the user {self._endpoint.user!r}",
                "remove passwords.json from EVPACK_HOME/airflow and start again",
            )
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:500]
    return f"{detail} (HTTP {answer.status_code})"

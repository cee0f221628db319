"""What the scheduler does besides scheduling: it removes containers that nobody looks after."""

# Airflow's decorators have no types mypy can follow (see pyproject).
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import logging
import sys
from typing import Any

from airflow.listeners import hookimpl

from evpack.home import Home
from evpack.runtime.abandoned import reap_abandoned

log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: Any) -> None:
    """A scheduler that starts removes what the one before it left. Its tasks, which call this too, are no jobs."""
    if type(component).__name__ == "Job" and "scheduler" in sys.argv:
        reap_abandoned(Home.locate(), log.warning)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """The end of a campaign, seen by the scheduler."""
    reap_abandoned(Home.locate(), log.warning)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """The same of one that failed."""
    reap_abandoned(Home.locate(), log.warning)

"""What the scheduler does besides scheduling: it looks at the pools and removes containers that nobody looks after."""

# Airflow's decorators have no types mypy can follow (see pyproject).
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import logging
import sys
from typing import Any

from airflow.listeners import hookimpl

from evpack.errors import EvpackError
from evpack.home import Home
from evpack.runtime.abandoned import reap_abandoned
from evpack.runtime.notify import notify
from evpack.runtime.pools import made_pools, pool_drift

log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: Any) -> None:
    """A scheduler that starts removes what the one before it left. Its tasks, which call this too, are no jobs."""
    if type(component).__name__ == "Job" and "scheduler" in sys.argv:
        reap_abandoned(Home.locate(), log.warning)


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    """The start of a campaign: its pools must be those that were made, or its steps may wait forever."""
    home = Home.locate()
    try:
        lines = pool_drift(made_pools(home), _pools_in_database()).values()
    except EvpackError as error:
        notify(home, "pool_drift", str(error))
        return
    for line in lines:
        notify(home, "pool_drift", f"{line} (`evpack airflow setup` mends it)")


def _pools_in_database() -> dict[str, int]:
    """Slots by pool, by a connection of its own: the scheduler's session must not be touched."""
    from airflow.models.pool import Pool
    from sqlalchemy import select

    from airflow import settings

    with settings.engine.connect() as connection:
        return dict(connection.execute(select(Pool.pool, Pool.slots)).tuples().all())


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """The end of a campaign, seen by the scheduler."""
    reap_abandoned(Home.locate(), log.warning)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """The same of one that failed."""
    reap_abandoned(Home.locate(), log.warning)

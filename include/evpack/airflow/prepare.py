"""Makes an Airflow deployment ready for this project. Runs in a process whose AIRFLOW_HOME is set already.

Database at the newest schema, pools, DAGs serialised, and (asked for) runs closed that a killed scheduler left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evpack.airflow.config import WEIGHT_RULE, Deployment
from evpack.airflow.weights import task_instance_mutation_hook
from evpack.files import write_json
from evpack.home import Home
from evpack.runtime.pools import pool_slots

_UNFINISHED_RUNS = ("running", "queued")


def migrate() -> None:
    """Bring the metadata database to the newest schema."""
    from airflow.utils import db
    from sqlalchemy import inspect

    from airflow import settings

    if not inspect(settings.engine).has_table("dag_run"):
        db.initdb()
        return
    try:
        db.check_migrations(0)
    except TimeoutError:
        db.upgradedb()


def set_pools(home: Home, slots: Mapping[str, int]) -> None:
    """Create or update the pools, and write what was made to EVPACK_HOME/pools.json."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        for name, count in sorted(slots.items()):
            Pool.create_or_update_pool(
                name, count, f"evpack: {name} steps at once", include_deferred=True, session=session
            )
    write_json(home.pools, dict(slots))


def serialise_dags() -> None:
    """Parse the DAG files and store them, so that no DAG processor has to run.

    Raises:
        SystemExit: when a file cannot be imported; names file and error.
    """
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.utils.session import create_session

    manager = DagBundlesManager()
    with create_session() as session:
        manager.sync_bundles_to_db(session=session)
        session.commit()
        for bundle in manager.get_all_dag_bundles():
            bundle.initialize()
            bag = BundleDagBag(bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
            if bag.import_errors:
                sys.exit("\n".join(f"{path}: {error}" for path, error in bag.import_errors.items()))
            sync_bag_to_db(bag, bundle.name, bundle_version=None, version_data=None, session=session)


def close_unfinished_runs() -> list[str]:
    """Fail every DAG run that a scheduler left unfinished, with its unfinished tasks.

    A new scheduler would go on with them, beside the run somebody asks for now.

    Returns:
        ``dag_id/run_id`` of each.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import State
    from sqlalchemy import or_, select, update

    with create_session() as session:
        runs = session.execute(select(DagRun.dag_id, DagRun.run_id).where(DagRun.state.in_(_UNFINISHED_RUNS))).all()
        for dag_id, run_id in runs:
            here = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
            unfinished = or_(TaskInstance.state.is_(None), TaskInstance.state.not_in(State.finished))
            session.execute(update(TaskInstance).where(*here, unfinished).values(state="failed"))
            session.execute(
                update(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id).values(state="failed")
            )
    return [f"{dag_id}/{run_id}" for dag_id, run_id in runs]


def prepare(home: Home, *, close_runs: bool) -> None:
    """Everything above, in order; prints what it closed."""
    migrate()
    set_pools(home, pool_slots())
    if close_runs:
        for run in close_unfinished_runs():
            print(f"closed: {run}", flush=True)
    serialise_dags()


def told() -> dict[str, Any]:
    """What `evpack doctor` asks of an Airflow that it did not set up: options in force, pools, plugin, hook, DAGs."""
    from airflow.configuration import conf
    from airflow.models.dag import DagModel
    from airflow.models.pool import Pool
    from airflow.plugins_manager import get_priority_weight_strategy_plugins
    from airflow.utils.session import create_session
    from sqlalchemy import select

    hook = getattr(sys.modules.get("airflow_local_settings"), "task_instance_mutation_hook", None)
    with create_session() as session:
        return {
            "options": {f"{section}.{option}": conf.get(section, option) for section, option in Deployment.needed(0)},
            "pools": dict(session.execute(select(Pool.pool, Pool.slots)).tuples().all()),
            "weights": WEIGHT_RULE in get_priority_weight_strategy_plugins(),
            "order": getattr(hook, "__module__", None) == task_instance_mutation_hook.__module__,
            "dags": sorted(session.scalars(select(DagModel.dag_id).where(DagModel.is_stale.is_(False)))),
        }


def main() -> None:
    """`python -m evpack.airflow.prepare`: prepare, then become the scheduler when asked.

    The scheduler follows in the same process because importing Airflow is most of its start-up.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--close-runs", action="store_true")
    parser.add_argument("--ready-file", help="created when the database is ready")
    parser.add_argument("--then", nargs=argparse.REMAINDER, default=[], help="airflow sub-command to go on with")
    parser.add_argument("--tell", action="store_true", help="change nothing, print what `told` gives")
    options = parser.parse_args()
    if options.tell:
        print(json.dumps(told()))
        return
    prepare(Home.locate(), close_runs=options.close_runs)
    if options.ready_file:
        Path(options.ready_file).touch()
    if options.then:
        from airflow.__main__ import main as airflow

        sys.argv = ["airflow", *options.then]
        airflow()


if __name__ == "__main__":
    main()

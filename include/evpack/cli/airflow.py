"""`evpack airflow`: set up a deployment; keep an Airflow with its UI up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import typer

from evpack.errors import EvpackError
from evpack.plan.hosts import check_one_host
from evpack.runtime.choice import chosen_runtime

POLL_S = 1.0


def register(app: typer.Typer) -> None:
    """Add `airflow` with its sub-commands."""
    group = typer.Typer(no_args_is_help=True, help="The Airflow that schedules campaigns.")
    app.add_typer(group, name="airflow")

    @group.command()
    def setup() -> None:
        """Prepare database, pools and DAGs of AIRFLOW_HOME when it is set, else of the Airflow in EVPACK_HOME."""
        chosen_runtime()  # what the DAGs cannot be built for is told here, in one line
        prepare()

    @group.command()
    def up() -> None:
        """Run Airflow with its UI on this project until Ctrl-C; campaigns started meanwhile use it."""
        chosen_runtime()
        check_one_host()
        serve()


def prepare() -> None:
    """Database, pools and DAGs; idempotent.

    Raises:
        EvpackError: when Airflow cannot be prepared; its own words went to standard error.
    """
    from evpack.airflow.config import Deployment
    from evpack.home import Home
    from evpack.runtime.pools import pool_slots

    home = Home.locate().create()
    environ = dict(os.environ)
    if "AIRFLOW_HOME" not in environ:
        deployment = Deployment.locate(home)
        deployment.write_for(sum(pool_slots().values()))
        environ = deployment.environ()
    command = [sys.executable, "-m", "evpack.airflow.prepare"]
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise EvpackError("Airflow could not be prepared", "see its messages above")
    pools = json.loads(home.pools.read_text(encoding="utf-8"))
    print(f"{environ['AIRFLOW_HOME']}: " + ", ".join(f"pool {name} {slots} slots" for name, slots in pools.items()))


def serve() -> None:
    """Start Airflow and wait for Ctrl-C.

    Raises:
        EvpackError: when a component dies.
    """
    from evpack.airflow.config import Deployment
    from evpack.airflow.embedded import running
    from evpack.home import Home

    deployment = Deployment.locate(Home.locate().create())
    print("starting Airflow", flush=True)
    try:
        with running(deployment, lambda line: print(line, flush=True), up=True) as airflow:
            endpoint = airflow.endpoint
            print(f"Airflow: {endpoint.url}  user: {endpoint.user}  password: {endpoint.password}", flush=True)
            print("Ctrl-C stops it", flush=True)
            while True:
                airflow.check()
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        print("Airflow stopped", flush=True)

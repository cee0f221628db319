"""`evpack invalidate`: take back a finished step and all that was made from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from evpack.rundir import RunDir


def register(app: typer.Typer) -> None:
    """Add `invalidate`."""

    @app.command()
    def invalidate(
        run_dir: Path = typer.Argument(help="Run directory of a planned campaign."),
        step_id: str = typer.Argument(help="Step id from state/plan.json."),
    ) -> None:
        """Move a step's results, and those of all steps that depend on it, to archive/; the next resume redoes them."""
        from evpack.plan.model import load_plan
        from evpack.rundir import RunDir
        from evpack.steps.invalidate import invalidate as take_back

        run = RunDir(run_dir.absolute())
        plan = load_plan(run)
        _check_free(run)
        taken = take_back(run, plan, step_id)
        typer.echo("\n".join(f"taken back: {name}" for name in taken) or "nothing of it was finished")
        typer.echo(f"redo it with: evpack campaign resume {run.root}")


def _check_free(run: RunDir) -> None:
    """Ask the Airflow that runs on this home, if one does: between two steps no process tells that a DAG run goes on.

    Raises:
        BadInput: while a DAG run works in the directory.
    """
    from evpack.airflow.client import Client
    from evpack.airflow.config import Deployment
    from evpack.airflow.embedded import endpoint_of
    from evpack.airflow.occupancy import at_work, check_free
    from evpack.home import Home

    if at_work(run) is None or (endpoint := endpoint_of(Deployment.locate(Home.locate()))) is None:
        return
    with Client(endpoint) as client:
        if client.health():
            check_free(client, run)

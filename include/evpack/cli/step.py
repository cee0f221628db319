"""`evpack step`: the command every runtime runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add `step`."""

    @app.command()
    def step(
        run_dir: Path = typer.Argument(help="Run directory of a planned campaign."),
        step_id: str = typer.Argument(help="Step id from state/plan.json, or one of the short campaign-level ids."),
        try_: int = typer.Option(1, "--try", min=1, help="Try number within the DAG run."),
        dag_run: str | None = typer.Option(None, "--dag-run", help="Id of the DAG run that asks."),
        outbox: Path | None = typer.Option(
            None, "--outbox", help="Only do the work and leave its result here (what a container does)."
        ),
        batch: int | None = typer.Option(None, "--batch", min=1, help="Windows per forward pass, with --outbox."),
    ) -> None:
        """Run one step of a campaign; the exit code says how it ended."""
        from evpack.runtime.leases import lease_devices
        from evpack.steps.remote import work_alone
        from evpack.steps.runner import in_own_process, main_step

        if outbox is None:
            raise typer.Exit(main_step(run_dir, step_id, try_, dag_run, lease_devices))
        alone = partial(work_alone, run_dir, step_id, attempt=try_, batch=batch, outbox=outbox, lease=lease_devices)
        raise typer.Exit(in_own_process(alone))

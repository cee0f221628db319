"""`evpack invalidate`: take back a finished step and all that was made from it."""

from __future__ import annotations

from pathlib import Path

import typer


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
        taken = take_back(run, load_plan(run), step_id)
        typer.echo("\n".join(f"taken back: {name}" for name in taken) or "nothing of it was finished")
        typer.echo(f"redo it with: evpack campaign resume {run.root}")

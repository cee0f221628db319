"""`evpack assets`: models and texts that come with the project."""

from __future__ import annotations

from pathlib import Path

import typer

from evpack.assets import demo
from evpack.errors import BadInput
from evpack.home import Home
from evpack.publishing import AlreadyPublished


def register(app: typer.Typer) -> None:
    """Add the `assets` group."""
    group = typer.Typer(help="Models and texts that come with the project.", no_args_is_help=True)
    group.command("demo")(prepare)
    group.command("speeches")(speeches)
    app.add_typer(group, name="assets")


def prepare() -> None:
    """Fetch the demo model and text into EVPACK_HOME, or check them when they are there."""
    demo.prepare_demo(Home.locate(), typer.echo)


def speeches(
    directory: Path = typer.Argument(help="A directory that does not exist yet."),
) -> None:
    """Fetch all State of the Union messages (training text of the fixture model)."""
    try:
        count = demo.write_speeches(directory)
    except AlreadyPublished as error:
        raise BadInput(f"{directory} exists already", "name a new directory") from error
    typer.echo(f"{count} speeches in {directory}")

"""`evpack settings`: the settings as they would be frozen, and their documentation."""

from __future__ import annotations

import typer

from evpack.cli.plan import parse_params


def register(app: typer.Typer) -> None:
    """Add `settings`."""
    group = typer.Typer(help="Settings: show them, or print docs/tuning.md.", no_args_is_help=True)
    app.add_typer(group, name="settings")

    @group.command()
    def show(
        suite: str | None = typer.Option(None, "--suite", help="Suite whose settings apply."),
        param: list[str] = typer.Option([], "--param", "-p", help="A setting as name=value; may be repeated."),
    ) -> None:
        """Print the settings a campaign would be frozen with, from params, environment, suite and defaults."""
        import os

        from evpack.catalog.suites import settings_for
        from evpack.files import pretty_json
        from evpack.home import Home
        from evpack.steps.plan import warn_idle

        params = parse_params(param, suite=suite)
        warn_idle(params)
        settings = settings_for(params, {}, os.environ, Home.locate())
        typer.echo(pretty_json(settings.to_json()).decode(), nl=False)

    @group.command()
    def docs() -> None:
        """Print the text of docs/tuning.md."""
        from evpack.settings_docs import tuning_page

        typer.echo(tuning_page(), nl=False)

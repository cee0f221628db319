"""`evpack suites`: what can be run."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add `suites`."""

    @app.command()
    def suites(
        name: str | None = typer.Argument(None, help="Show this suite with its scenarios and settings."),
    ) -> None:
        """List the suites, or one suite's models, scenarios and settings."""
        from evpack.catalog.loader import parse_as, shipped
        from evpack.catalog.scenarios import ErrorGeneration, Manifest
        from evpack.catalog.suites import suite
        from evpack.catalog.suites import suites as all_suites

        if name is None:
            for known, entry in all_suites().items():
                typer.echo(f"{known:10} {', '.join(model.id for model in entry.models)}\n{'':10} {entry.note}")
            return
        entry = suite(name)
        typer.echo(f"{name}: {entry.note}\nmodels")
        for model in entry.models:
            typer.echo(f"  {model.id}" + (f"  ({model.location})" if model.location else ""))
        typer.echo(f"scenarios ({entry.scenarios})")
        for scenario in parse_as(Manifest, shipped(entry.scenarios), entry.scenarios).scenarios:
            made = scenario.generation
            what = made.error_type if isinstance(made, ErrorGeneration) else made.edit_spec
            typer.echo(f"  {scenario.id:24} {scenario.strictness.value:14} {what}")
        typer.echo("settings")
        for key, value in entry.settings.items():
            typer.echo(f"  {key} = {value}")

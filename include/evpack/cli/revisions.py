"""`evpack revisions`: which commits of hub models this deployment uses."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the `revisions` group."""
    group = typer.Typer(help="Pinned revisions of hub models.", no_args_is_help=True)
    group.command("show")(show)
    group.command("pin")(pin)
    app.add_typer(group, name="revisions")


def show(
    file: Path | None = typer.Option(None, "--file", help="A revisions file; else the deployment's."),
) -> None:
    """List the pinned models."""
    from evpack.home import Home
    from evpack.plan.revisions import read_pins
    from evpack.settings import Settings

    home = Home.locate()
    pins = read_pins(Settings(model_revisions_file=str(file) if file else None), home)
    if not pins:
        typer.echo(f"no model is pinned in {file or home.model_revisions}; pin with `evpack revisions pin`")
    for model_id, entry in pins.items():
        typer.echo(f"{model_id} {entry.get('revision')} {entry.get('resolved_at')}")


def pin(
    model: list[str] | None = typer.Argument(None, help="Hub ids; else the hub models of the suite."),
    suite: str = typer.Option("subset", "--suite", help="Suite whose models are meant when none is named."),
    fetch: bool = typer.Option(False, "--fetch", help="Also download the snapshots, for work without network."),
) -> None:
    """Pin models to the head of their repositories (needs the network); keeps the pins of other models."""
    import os

    from evpack.catalog.suites import suite as suite_named
    from evpack.files import utc_now
    from evpack.home import Home
    from evpack.plan.revisions import resolve_pin, store_pins
    from evpack.plan.sources import fetch_snapshot
    from evpack.settings_resolve import resolve

    home, now = Home.locate(), utc_now()
    settings = resolve({"net": True}, {}, os.environ, {})
    chosen = model or [entry.id for entry in suite_named(suite).models if entry.location is None]
    pins = {model_id: resolve_pin(model_id, now) for model_id in chosen}
    store_pins(home, pins, suite, now)
    for model_id, entry in pins.items():
        typer.echo(f"{model_id} {entry['revision']}")
        if fetch:
            typer.echo(f"  in {fetch_snapshot(model_id, entry['revision'], settings, home)}")

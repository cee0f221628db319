"""`evpack tune`: find the parameters of a model's clean edits by measuring."""

from __future__ import annotations

import signal
from pathlib import Path

import typer

from evpack.cli.plan import parse_params


def register(app: typer.Typer) -> None:
    """Add `tune`."""

    @app.command()
    def tune(
        model: str = typer.Argument(help="A model of a suite, a checkpoint directory or a hub id."),
        suite: str | None = typer.Option(
            None, "--suite", help="Suite whose text and runs the parameters are for; else the first with the model."
        ),
        text: Path | None = typer.Option(None, "--text", help="Text file or directory to measure on."),
        windows: int | None = typer.Option(None, "--windows", help="Windows to measure on; else 128."),
        edit: list[str] = typer.Option([], "--edit", help="Edit type; may be repeated; else all."),
        out: Path | None = typer.Option(None, "--out", help="Tuned parameters file that gets the entries."),
        param: list[str] = typer.Option([], "--param", "-p", help="A setting as name=value; may be repeated."),
    ) -> None:
        """Find the strongest parameters of each clean edit that all runs of a campaign accept."""
        from evpack.catalog.suites import suites
        from evpack.catalog.tuned import empty_document, load_tuned, with_entries
        from evpack.errors import BadInput
        from evpack.files import pretty_json, utc_now, write_json
        from evpack.home import Home
        from evpack.plan.disk import check_file
        from evpack.processes import interrupted_by
        from evpack.publishing import locked
        from evpack.sealed import check_outside
        from evpack.tuning import POOL_WINDOWS, Request
        from evpack.tuning import tune as run_sweep

        if suite is None:
            suite = next((name for name, one in suites().items() if model in [m.id for m in one.models]), None)
        params = parse_params(param, suite=suite)
        if text is not None:
            params |= {"dataset": "text", "text_path": str(text.absolute())}
        if out is not None:
            if not out.parent.is_dir():
                raise BadInput(f"--out {out}: there is no directory {out.parent}", "make it, or choose another place")
            check_outside(out, "--out")
            check_file(out, "--out")
            if out.exists():
                load_tuned(str(out))
        request = Request(model, params, edit, POOL_WINDOWS if windows is None else windows)
        document = empty_document()
        try:
            with interrupted_by(signal.SIGTERM):
                for model_id, kind, entry in run_sweep(request, Home.locate(), lambda line: typer.echo(line, err=True)):
                    if out is None:
                        document = with_entries(document, model_id, {kind: entry}, utc_now())
                        continue
                    with locked(out.parent):  # another sweep may have put entries there meanwhile
                        there = load_tuned(str(out)).document if out.exists() else empty_document()
                        write_json(out, with_entries(there, model_id, {kind: entry}, utc_now()))
                    typer.echo(f"{model_id}: {kind} {entry['status']}; written to {out}")
        finally:  # what was found before an error or an interruption took hours
            if document["models"]:
                typer.echo(pretty_json(document).decode("utf-8"), nl=False)

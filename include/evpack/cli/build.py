"""`evpack build`: seal the evidence pack of a finished run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def build(
        run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory with a compiled verdict.")],
        signing_key: Annotated[
            Path | None,
            typer.Option(
                envvar="PACK_SIGNING_KEY", help="Private key (Ed25519 PEM, mode 0600); else the deployment's."
            ),
        ] = None,
        pack_dir: Annotated[
            Path | None,
            typer.Option(envvar="PACK_DIR", help="Where the pack goes; else as planned, evidence_pack/ in RUN."),
        ] = None,
        unsigned: Annotated[bool, typer.Option("--unsigned", help="Leave the pack without a signature.")] = False,
        skip_html: Annotated[
            bool, typer.Option("--skip-html", envvar="PACK_SKIP_HTML", help="Leave out the HTML page.")
        ] = False,
        form: Annotated[
            str | None, typer.Option("--layout", metavar="v1|v2", help="Layout of the pack; else as planned.")
        ] = None,
    ) -> None:
        """Build the evidence pack of a finished run directory, whatever its verdict.

        Exit 0; 2 wrong usage, or something is missing that a pack needs; 7 reports or verdict do not follow from the
        records, or PACK_VERIFY_PROFILE of the campaign is not met; 13 no room.
        """
        from evpack.errors import BadInput, EvidenceError, plain
        from evpack.home import Home
        from evpack.pack.build import build as build_pack
        from evpack.pack.layout import LAYOUTS
        from evpack.pack.verify import VerifyExit
        from evpack.plan.model import load_plan
        from evpack.rundir import RunDir
        from evpack.settings import Settings
        from evpack.settings_types import layout_name
        from evpack.steps.build_pack import pack_path, signing_key_of

        run = RunDir(run_dir.absolute())
        load_plan(run)
        planned = Settings.parse(run.settings.read_bytes(), str(run.settings))
        chosen = planned.layout if form is None else layout_name(form)
        if chosen not in LAYOUTS:
            raise BadInput(f"unknown layout {form!r}", "use v1 (flat, legacy) or v2 (enhanced)")
        key = None if unsigned else signing_key or signing_key_of(planned, Home.locate())
        html = not (skip_html or planned.skip_html)
        target = pack_dir or pack_path(run, planned)
        try:
            built = build_pack(run, key=key, out=target, html=html, form=LAYOUTS[chosen].name)
        except EvidenceError as error:
            typer.echo(f"evpack: {error.diagnostics()}", err=True)
            raise typer.Exit(int(VerifyExit.EVIDENCE)) from error
        for warning in built.warnings:
            typer.echo(f"warning: {plain(warning)}", err=True)
        typer.echo(f"pack            {built.path} ({'kept, nothing changed' if built.kept else 'sealed'})")
        typer.echo(f"evidence level  {built.evidence_level}")
        typer.echo(f"manifest        {built.manifest_digest}")
        typer.echo(f"signer          {built.fingerprint or 'none'}")
        if built.superseded:
            typer.echo(f"superseded      {built.path.with_name(built.superseded)}")

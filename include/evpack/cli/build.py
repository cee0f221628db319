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
                help="Private key (PKCS8 PEM, Ed25519, mode 0600); else PACK_SIGNING_KEY, else the deployment's."
            ),
        ] = None,
        pack_dir: Annotated[
            Path | None, typer.Option(help="Where the pack goes; else evidence_pack/ in the run directory.")
        ] = None,
        unsigned: Annotated[bool, typer.Option("--unsigned", help="Leave the pack without a signature.")] = False,
        skip_html: Annotated[
            bool, typer.Option("--skip-html", envvar="PACK_SKIP_HTML", help="Leave out the HTML page.")
        ] = False,
    ) -> None:
        """Build the evidence pack of a finished run directory, whatever its verdict."""
        import os

        from evpack.errors import BadInput
        from evpack.home import Home
        from evpack.pack import keys
        from evpack.pack.build import build as build_pack
        from evpack.rundir import RunDir

        if unsigned and signing_key:
            raise BadInput("--unsigned and --signing-key contradict each other", "give one of them")
        named = signing_key or (Path(os.environ["PACK_SIGNING_KEY"]) if os.environ.get("PACK_SIGNING_KEY") else None)
        key = None if unsigned else named or keys.deployment_key(Home.locate())
        built = build_pack(RunDir(run_dir.absolute()), key=key, out=pack_dir, html=not skip_html)
        for warning in built.warnings:
            typer.echo(f"warning: {warning}", err=True)
        typer.echo(f"pack            {built.path} ({'kept, nothing changed' if built.kept else 'sealed'})")
        typer.echo(f"evidence level  {built.evidence_level}")
        typer.echo(f"manifest        {built.manifest_digest}")
        typer.echo(f"signer          {built.fingerprint or 'none'}")
        if built.superseded:
            typer.echo(f"superseded      {built.path.with_name(built.superseded)}")

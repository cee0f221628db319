"""`evpack keygen`: a new Ed25519 key pair for signing packs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def keygen(
        private: Annotated[Path, typer.Argument(metavar="STEM", help="File of the private key (mode 0600).")],
    ) -> None:
        """Make a signing key: STEM (private, PKCS8 PEM) and STEM.pub.pem (public). Never overwrites."""
        from evpack.pack import keys

        fingerprint = keys.write_keypair(private)
        typer.echo(f"private key  {private}\npublic key   {keys.public_path(private)}\nfingerprint  {fingerprint}")

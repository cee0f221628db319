"""`evpack attest`: an in-toto attestation of a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evpack.cli.verify import Pack, PolicyFile, evidence_exit, read_policy


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def attest(
        pack: Pack,
        signing_key: Annotated[
            Path | None,
            typer.Option(envvar="PACK_SIGNING_KEY", help="Key that sealed the pack; else the deployment's."),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="File of the envelope; else <pack>.attestation.json beside the pack.")
        ] = None,
        policy: PolicyFile = None,
    ) -> None:
        """Write an in-toto Statement (test-result) about a pack in a DSSE envelope, signed by the key that sealed it.

        The pack is verified first; one that does not verify is not attested. `evpack verify --attestation FILE` checks
        the envelope.
        """
        from evpack.errors import BadInput, MissingFile, plain
        from evpack.home import Home
        from evpack.pack import keys
        from evpack.pack.attest import is_envelope, sign
        from evpack.pack.trust import Trust
        from evpack.pack.verify import Demands, verify_pack
        from evpack.plan.disk import check_file
        from evpack.publishing import write_atomic
        from evpack.sealed import check_outside

        target = out or pack.absolute().with_name(f"{pack.absolute().name}.attestation.json")
        check_outside(target, "--out")
        check_file(target, "--out")
        if target.exists() and not is_envelope(target):
            raise BadInput(f"{target} exists already and is no attestation", "choose another place")
        key = signing_key or keys.deployment_key_path(Home.locate())
        if signing_key is None and not key.exists():
            raise MissingFile(f"this deployment has no key {key}", "name the key that sealed the pack: --signing-key")
        private, limits = keys.load_private(key), read_policy(policy) if policy else None
        trust = Trust(frozenset({keys.fingerprint(private.public_key())}))
        result = verify_pack(pack, trust, Demands(strict=True, policy=limits))
        if not result.ok:
            typer.echo(f"evpack: {pack} is not attested: {plain(result.findings[0].text)}", err=True)
            raise typer.Exit(int(result.exit_code))
        with evidence_exit():
            envelope = sign(result.files, result.layout, private)
        write_atomic(target, envelope)
        typer.echo(f"attestation  {target}\nresult       {result.verdict}\nsigner       {result.fingerprint}")

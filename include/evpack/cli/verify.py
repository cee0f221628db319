"""`evpack verify`: check a pack and say what it proves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evpack.catalog.policy import Policy
    from evpack.pack.verify import Verification

_AUTHENTICITY = {
    "pinned": "a trusted key",
    "unpinned": "a key that nobody vouched for (integrity only)",
    "mismatch": "a key that is NOT trusted",
    "unsigned": "nobody",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def verify(
        pack: Annotated[Path, typer.Argument(help="Directory of the pack.")],
        strict: Annotated[
            bool, typer.Option("--strict", help="Require a signature by a trusted key; exit 5 without one.")
        ] = False,
        trusted_key: Annotated[
            list[Path] | None, typer.Option(help="File with a trusted public key (PEM) or fingerprint; repeatable.")
        ] = None,
        expected_fingerprint: Annotated[
            list[str] | None, typer.Option(help="Trusted fingerprint, sha256:<64 hex digits>; repeatable.")
        ] = None,
        trust_store: Annotated[
            Path | None,
            typer.Option(help="JSON list of trusted fingerprints; else evpack/trusted_keys.json in XDG_CONFIG_HOME."),
        ] = None,
        policy: Annotated[
            Path | None, typer.Option(help="Policy to judge by; else the installed tier data.", show_default=False)
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
        json_out: Annotated[
            Path | None, typer.Option(help="Also write the JSON to this file, outside the pack.")
        ] = None,
    ) -> None:
        """Verify a pack: signature, integrity, and that reports and verdict follow from the records.

        Exit 0 all holds and the signer is trusted; 2 wrong usage; 3 missing; 4 format; 5 signature or signer;
        6 integrity; 7 reports or verdict do not follow; 8 all holds, but no trusted key was given.
        A pack whose true verdict is FAIL verifies.
        """
        from evpack.errors import BadInput
        from evpack.files import pretty_json, write_atomic
        from evpack.pack import trust
        from evpack.pack.verify import verify_pack

        if json_out is not None and json_out.resolve().is_relative_to(pack.resolve()):
            raise BadInput(f"--json-out {json_out} lies inside the pack, which must not change", "write it elsewhere")
        accepted = trust.collect(
            trusted_keys=trusted_key or (), fingerprints=expected_fingerprint or (), store=trust_store
        )
        limits = _policy(policy) if policy else None
        result = verify_pack(pack, accepted, strict=strict, policy=limits)
        document = pretty_json(result.to_json())
        if json_out is not None:
            write_atomic(json_out, document)
        typer.echo(document.decode("utf-8"), nl=False) if as_json else _print(result)
        raise typer.Exit(int(result.exit_code))


def _policy(path: Path) -> Policy:
    from evpack.catalog.policy import Policy
    from evpack.errors import BadInput, EvidenceError, MissingFile

    if not path.is_file():
        raise MissingFile(f"policy {path} does not exist", "check the path")
    try:
        return Policy.parse(path.read_bytes(), str(path))
    except EvidenceError as error:
        raise BadInput(error.what, "give a complete state/policy.json") from error


def _print(result: Verification) -> None:
    typer.echo(f"verdict         {result.verdict or 'not established'}")
    typer.echo(f"evidence level  {result.evidence_level or 'not stated'}")
    typer.echo(f"signed by       {_AUTHENTICITY[result.authenticity]}")
    typer.echo(f"fingerprint     {result.fingerprint or '-'}")
    typer.echo(f"recomputed      {result.reports} reports")
    for finding in result.findings:
        typer.echo(f"error ({int(finding.code)})       {finding.text}")
    for warning in result.warnings:
        typer.echo(f"warning         {warning}")
    typer.echo(f"outcome         {result.exit_code.name.lower()} (exit {int(result.exit_code)})")

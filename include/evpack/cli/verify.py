"""`evpack verify` and `evpack inspect`: check a pack and say what it proves; look into one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evpack.errors import plain

if TYPE_CHECKING:
    from evpack.catalog.policy import Policy
    from evpack.pack.trust import Trust
    from evpack.pack.verify import Verification

AUTHENTICITY = {
    "pinned": "a trusted key",
    "unpinned": "a key that nobody vouched for (integrity only)",
    "mismatch": "a key that is NOT trusted",
    "unsigned": "nobody",
}
INVALID = "signature invalid"
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}

Pack = Annotated[Path, typer.Argument(help="Directory of the pack.", readable=False)]
TrustedKey = Annotated[
    list[Path] | None, typer.Option(help="File with a trusted public key (PEM) or fingerprint; repeatable.")
]
Fingerprint = Annotated[list[str] | None, typer.Option(help="Trusted fingerprint, sha256:<64 hex digits>; repeatable.")]
Store = Annotated[
    Path | None,
    typer.Option(help="JSON list of trusted fingerprints; else evpack/trusted_keys.json in XDG_CONFIG_HOME."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy to judge by; else the installed tier data.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(verify)
    app.command()(inspect)


def verify(
    pack: Pack,
    strict: Annotated[
        bool, typer.Option("--strict", help="Require a signature by a trusted key; exit 5 without one.")
    ] = False,
    trusted_key: TrustedKey = None,
    expected_fingerprint: Fingerprint = None,
    trust_store: Store = None,
    policy: PolicyFile = None,
    profile: Annotated[
        Literal["dev", "ci", "release"],
        typer.Option(
            help="ci: metric and drift of must_pass reports pass, must_fail ones do not; release: guards too."
        ),
    ] = "dev",
    max_age: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Oldest evidence to accept, e.g. 30d, 12h, 90m; baselines: since the plan."),
    ] = None,
    attestation: Annotated[
        Path | None, typer.Option(help="DSSE envelope by `evpack attest` that must attest this pack.")
    ] = None,
    skip_verify: Annotated[
        bool, typer.Option("--skip-verify", help="Check signature and integrity only, recompute nothing: exit 8.")
    ] = False,
    as_json: AsJson = False,
    json_out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file, outside the pack.")] = None,
) -> None:
    """Verify a pack: signature, integrity, and that reports and verdict follow from the records.

    Exit 0 all holds and the signer is trusted; 2 wrong usage; 3 missing; 4 format; 5 signature or signer;
    6 integrity; 7 reports or verdict do not follow, or are too old; 8 integrity only: all holds, but no trusted
    key was given, or nothing was recomputed.
    A pack whose true verdict is FAIL verifies.
    """
    from evpack.errors import BadInput
    from evpack.files import pretty_json
    from evpack.pack import attest
    from evpack.pack.verify import Demands, verify_pack
    from evpack.plan.disk import check_file
    from evpack.publishing import write_atomic
    from evpack.sealed import check_outside

    if json_out is not None:
        check_outside(json_out, "--json-out")
        check_file(json_out, "--json-out")
    needs_evidence = {
        "--profile": None if profile == "dev" else profile,
        "--policy": policy,
        "--max-age": max_age,
        "--attestation": attestation,
    }
    if skip_verify and (asked := [option for option, value in needs_evidence.items() if value is not None]):
        raise BadInput(f"--skip-verify leaves out what {asked[0]} asks for", "give one of the two")
    demands = Demands(
        strict=strict,
        policy=read_policy(policy) if policy else None,
        profile=profile,
        max_age=None if max_age is None else _age(max_age),
        skip_evidence=skip_verify,
        attestation=attest.read(attestation) if attestation else None,
    )
    result = verify_pack(pack, trust_of(trusted_key, expected_fingerprint, trust_store), demands)
    document = pretty_json(result.to_json())
    if json_out is not None:
        write_atomic(json_out, document)
    typer.echo(document.decode("utf-8"), nl=False) if as_json else _print(result)
    raise typer.Exit(int(result.exit_code))


def inspect(
    pack: Pack,
    trusted_key: TrustedKey = None,
    expected_fingerprint: Fingerprint = None,
    trust_store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pack says about itself, after checking its form and integrity; recompute nothing.

    Exit 0; 3 missing; 4 format; 6 integrity. A signature that does not hold is told, not an error here.
    """
    from evpack.files import pretty_json
    from evpack.pack.verify import Demands, verify_pack

    trust = trust_of(trusted_key, expected_fingerprint, trust_store)
    result = verify_pack(pack, trust, Demands(skip_evidence=True))
    facts = _inspected(result)
    typer.echo(pretty_json(facts).decode("utf-8"), nl=False) if as_json else _print_facts(facts)
    raise typer.Exit(facts["exit"])


def trust_of(keys: list[Path] | None, fingerprints: list[str] | None, store: Path | None) -> Trust:
    """Whom the options of a command line say to trust."""
    from evpack.pack import trust

    return trust.collect(trusted_keys=keys or (), fingerprints=fingerprints or (), store=store)


def read_policy(path: Path) -> Policy:
    """A policy to judge by.

    Raises:
        BadInput: when it is missing or malformed.
    """
    from evpack.catalog.policy import Policy
    from evpack.errors import BadInput, EvidenceError, MissingFile
    from evpack.files import read_regular

    try:
        return Policy.parse(read_regular(path), str(path))
    except FileNotFoundError as error:
        raise MissingFile(f"policy {path} does not exist", "check the path") from error
    except EvidenceError as error:
        raise BadInput(error.what, "give a complete state/policy.json") from error


@contextmanager
def evidence_exit() -> Iterator[None]:
    """End a command with the verifier's code when a pack that was verified cannot be read any more."""
    from evpack.errors import EvidenceError, IntegrityError
    from evpack.pack.verify import VerifyExit

    try:
        yield
    except EvidenceError as error:
        typer.echo(f"evpack: {error.diagnostics()}", err=True)
        code = VerifyExit.INTEGRITY if isinstance(error, IntegrityError) else VerifyExit.EVIDENCE
        raise typer.Exit(int(code)) from error


def _age(text: str) -> timedelta:
    from evpack.errors import BadInput

    match = re.fullmatch(r"([0-9]{1,6})([dhm])", text.strip())
    if match is None:
        raise BadInput(f"--max-age {text!r} is not an age", "write a whole number and d, h or m, e.g. 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _inspected(result: Verification) -> dict[str, Any]:
    """The facts of `inspect`: findings, then what the manifest states."""
    codes = [int(finding.code) for finding in result.findings if int(finding.code) in (3, 4, 6)]
    document = result.manifest
    shown = ("suite", "generated_at", "layout", "network_mode", "determinism", "models", "verification", "supersedes")
    return result.to_json() | {
        "signature_holds": result.signature_holds,
        "exit": min(codes, default=0),
        "ok": not codes,
        "strict_ready": result.strict_ready,
        "stated": {key: document[key] for key in shown if key in document}
        | {"source": document.get("invocation", {}).get("config_source"), "files": len(document.get("artifacts", []))},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    stated = facts["stated"]
    source = stated["source"] or {}
    signer = AUTHENTICITY[facts["authenticity"]] if facts["signature_holds"] else INVALID
    rows = {
        "suite": stated.get("suite"),
        "made at": stated.get("generated_at"),
        "evidence level": facts["evidence_level"],
        "models": ", ".join(f"{m['model_id']} ({m['revision']})" for m in stated.get("models", [])),
        "reports": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in stated.get("verification", {}).items()),
        "files": f"{stated['files']}, layout {stated.get('layout', 'v1')}",
        "source": f"{source.get('commit')}{' with local changes' if source.get('dirty') else ''}",
        "signed by": f"{signer}, {facts['signer_fingerprint'] or '-'}",
        "strict ready": "yes" if facts["strict_ready"] else "no",
        "supersedes": (stated.get("supersedes") or {}).get("name"),
    }
    for name, value in rows.items():
        typer.echo(f"{name:<15} {plain(value) if value not in (None, '') else '-'}")
    for error in facts["errors"]:
        typer.echo(f"error ({error['exit']})       {plain(error['error'])}")
    typer.echo("nothing above was recomputed: `evpack verify` does that")


def _verdict(result: Verification) -> str:
    own, ours = result.verdict or "not established", result.verdict_by_policy or "not established"
    return own if own == ours else f"{ours} by the limits to judge by, {own} by the pack's own"


def _print(result: Verification) -> None:
    typer.echo(f"verdict         {_verdict(result)}")
    typer.echo(f"evidence level  {result.evidence_level or 'not stated'}")
    limits = ", ".join(f"{name} {value}" for name, value in (result.judged_by or {}).items())
    typer.echo(f"judged by       {plain(limits) or '-'}")
    typer.echo(f"signed by       {AUTHENTICITY[result.authenticity] if result.signature_holds else INVALID}")
    typer.echo(f"fingerprint     {result.fingerprint or '-'}")
    typer.echo(f"recomputed      {result.reports} reports")
    for finding in result.findings:
        typer.echo(f"error ({int(finding.code)})       {plain(finding.text)}")
    for warning in result.warnings:
        typer.echo(f"warning         {plain(warning)}")
    typer.echo(f"outcome         {result.exit_code.name.lower()} (exit {int(result.exit_code)})")

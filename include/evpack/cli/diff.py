"""`evpack diff`: what changed between two packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evpack.cli.verify import AsJson, Fingerprint, PolicyFile, Store, TrustedKey, evidence_exit, read_policy, trust_of
from evpack.errors import plain

if TYPE_CHECKING:
    from evpack.catalog.policy import Policy
    from evpack.pack.diff import Side
    from evpack.pack.trust import Trust


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def diff(
        old: Annotated[Path, typer.Argument(help="Directory of the earlier pack.", readable=False)],
        new: Annotated[Path, typer.Argument(help="Directory of the later pack.", readable=False)],
        trusted_key: TrustedKey = None,
        expected_fingerprint: Fingerprint = None,
        trust_store: Store = None,
        policy: PolicyFile = None,
        as_json: AsJson = False,
        html: Annotated[Path | None, typer.Option(help="Also write the comparison as a page to this file.")] = None,
    ) -> None:
        """Compare two packs: verdicts, ratios on shared windows, guard signals, revisions, environment.

        Both are verified first; one that does not verify ends in the verifier's exit code. Without --policy each is
        judged by its own limits, and a warning says where they are not the installed ones. Exit 0 when nothing got
        worse, 1 on a regression: a worse verdict, a gating scenario that no longer gets what it must, or a must_pass
        scenario whose ratio rose.
        """
        from evpack.files import pretty_json
        from evpack.pack.diff import compare
        from evpack.plan.disk import check_file
        from evpack.publishing import write_atomic
        from evpack.sealed import check_outside

        if html is not None:
            check_outside(html, "--html")
            check_file(html, "--html")
        trust = trust_of(trusted_key, expected_fingerprint, trust_store)
        limits = read_policy(policy) if policy else None
        with evidence_exit():
            result = compare(_side(old, trust, limits), _side(new, trust, limits))
        if html is not None:
            from evpack.render.diff import render_diff

            write_atomic(html, render_diff(result).encode("utf-8"))
        if as_json:
            typer.echo(pretty_json(result).decode("utf-8"), nl=False)
        else:
            for line in lines(result):
                typer.echo(plain(line))
        raise typer.Exit(1 if result["regressions"] else 0)


def _side(pack: Path, trust: Trust, limits: Policy | None) -> Side:
    """A pack that verifies (a signer that nobody vouched for is accepted and said).

    Raises:
        Exit: with the verifier's code when it does not.
    """
    from evpack.pack.diff import Side
    from evpack.pack.evidence import open_campaign
    from evpack.pack.verify import Demands, VerifyExit, verify_pack

    result = verify_pack(pack, trust, Demands(policy=limits, own_limits=limits is None))
    if result.exit_code not in (VerifyExit.OK, VerifyExit.INTEGRITY_ONLY):
        typer.echo(f"evpack: {pack} does not verify: {plain(result.findings[0].text)}", err=True)
        raise typer.Exit(int(result.exit_code))
    if result.exit_code is VerifyExit.INTEGRITY_ONLY:
        typer.echo(f"warning: {pack}: no trusted key was given: integrity only", err=True)
    campaign, _ = open_campaign(result.files, result.layout, limits)
    if other := list(campaign.other_limits.values()):
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        typer.echo(f"warning: {pack}: judged by limits of its own: {plain(other[0])}{more}", err=True)
    return Side(result.pack, campaign, result.fingerprint)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A comparison for people."""
    old, new = result["old"], result["new"]
    yield f"verdict         {old['verdict']} -> {new['verdict']}"
    yield f"packs           {old['pack']} -> {new['pack']}"
    signers = [side["signer_fingerprint"] or "nobody" for side in (old, new)]
    yield f"signers         {' -> '.join(dict.fromkeys(signers))}"
    if result["same_evidence"]:
        yield "evidence        the same raw records"
    for cell in result["cells"]:
        yield f"{cell['model']} / {cell['scenario']}: {_states(cell)}{_shift(cell['shift'])}{_signals(cell)}"
    for section in ("models", "lanes", "source", "policy", "settings", "environment"):
        for name, (before, after) in result[section].items():
            yield f"{section}: {name}: {before} -> {after}"
    for text in result["regressions"]:
        yield f"regression      {text}"
    yield f"outcome         {len(result['regressions'])} regressions"


def _states(cell: Mapping[str, Any]) -> str:
    got = [side["got"] if side else "not evaluated" for side in (cell["old"], cell["new"])]
    return got[0] if got[0] == got[1] else f"{got[0]} -> {got[1]}"


def _shift(shift: Mapping[str, Any] | None) -> str:
    if shift is None:
        return ""
    if shift["display_ci"] is None or shift["ratio"] is None:
        return f", no ratio shift ({shift['reason']})"
    low, high = shift["display_ci"]
    return f", ratio x{shift['ratio']:.4f} ({low:.4f} to {high:.4f}, {shift['windows']} windows)"


def _signals(cell: Mapping[str, Any]) -> str:
    parts = [f"+{name}" for name in cell["signals_new"]] + [f"-{name}" for name in cell["signals_gone"]]
    return f", signals {' '.join(parts)}" if parts else ""

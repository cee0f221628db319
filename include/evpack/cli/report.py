"""`evpack report verify`: check single reports where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evpack.cli.verify import AsJson, PolicyFile, read_policy
from evpack.errors import EvidenceError, plain

if TYPE_CHECKING:
    from evpack.pack.report_check import ReportCheck


def register(app: typer.Typer) -> None:
    """Add `report` with its sub-command."""
    group = typer.Typer(no_args_is_help=True, help="Look at single reports.")
    app.add_typer(group, name="report")

    @group.callback()
    def root() -> None:
        pass  # keeps `verify` a sub-command while it is the only one

    @group.command()
    def verify(
        reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="Reports, or directories of one.")],
        profile: Annotated[
            Literal["dev", "ci", "release"],
            typer.Option(help="dev: it follows from its records; ci: metric and drift pass too; release: guards too."),
        ] = "dev",
        policy: PolicyFile = None,
        as_json: AsJson = False,
    ) -> None:
        """Recompute metric, interval, gates, guards and digests of reports from the records beside them.

        Exit 0 all holds; 1 something does not follow, or the profile asks for more; 2 not readable or wrong usage.
        """
        from evpack.files import pretty_json
        from evpack.pack.report_check import check_one, document

        limits = read_policy(policy) if policy else None
        try:
            checks = [check_one(report, profile, limits) for report in reports]
        except EvidenceError as error:
            typer.echo(f"evpack: {error.diagnostics()}", err=True)
            raise typer.Exit(2) from error
        if as_json:
            typer.echo(pretty_json(document(checks)).decode("utf-8"), nl=False)
        else:
            typer.echo("\n".join(plain(line) for check in checks for line in _lines(check)))
        raise typer.Exit(max(check.exit_code for check in checks))


def _lines(check: ReportCheck) -> Iterator[str]:
    yield f"{check.reason:<12} {check.path}"
    yield from (f"  {problem}" for problem in check.problems)

"""Entry point of the `evpack` command."""

from __future__ import annotations

import importlib
import sys

import typer

from evpack import __version__
from evpack.errors import EvpackError, StepExit

COMMANDS = (
    *("campaign", "plan", "step", "verify", "build", "keygen", "airflow", "assets", "suites", "settings"),
    *("revisions", "tune", "variant", "diff", "attest", "devices", "doctor", "invalidate", "report"),
)
"""Modules of evpack.cli; each adds its commands with `register(app)`."""


def build_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="evpack",
        help="Scheduled validation of edited language models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if version:
            typer.echo(f"evpack {__version__}")
            raise typer.Exit

    for name in COMMANDS:
        importlib.import_module(f"evpack.cli.{name}").register(app)
    return app


def main() -> None:
    """Run the command line; what the operator can mend ends in its text and exit code, without a traceback."""
    try:
        build_app()(standalone_mode=True)
    except EvpackError as error:
        print(f"evpack: {error.diagnostics()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"evpack: {_refused_by_system(error)}", file=sys.stderr)
        sys.exit(StepExit.BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)


def _refused_by_system(error: OSError) -> str:
    """One line naming the path and the fault, then the mend."""
    what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error) or type(error).__name__
    if isinstance(error, PermissionError):
        mend = "let this user read (and where something is made, write) there, or name another place"
    else:
        mend = "check the path and the file system it is on, then try again"
    return EvpackError(" ".join(what.splitlines()), mend).diagnostics()


if __name__ == "__main__":
    main()

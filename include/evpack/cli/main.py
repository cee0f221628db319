"""Entry point of the `evpack` command."""

from __future__ import annotations

import importlib
import sys

import typer

from evpack import __version__
from evpack.errors import EvpackError

COMMANDS = (
    *("campaign", "plan", "step", "verify", "build", "keygen", "airflow", "assets", "suites", "settings"),
    *("revisions", "tune", "variant", "diff", "attest", "devices", "doctor"),
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
    """Run the command line; errors made on purpose end in their text and exit code, without a traceback."""
    try:
        build_app()(standalone_mode=True)
    except EvpackError as error:
        print(f"evpack: {error.diagnostics()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

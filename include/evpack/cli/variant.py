"""`evpack variant`: what can be done with the variants of a run directory."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add `variant`."""
    variant = typer.Typer(help="Variants: edited or damaged models of a campaign.", no_args_is_help=True)
    app.add_typer(variant, name="variant")

    @variant.callback()
    def root() -> None:
        pass

    @variant.command()
    def export(
        directory: Path = typer.Argument(help="The variant: models/<scenario> below a model of a run directory."),
        baseline: Path | None = typer.Option(
            None, "--baseline", help="The checkpoint it was made from; else baseline beside it."
        ),
        out: Path = typer.Option(..., "--out", help="Directory to make; must not exist."),
    ) -> None:
        """Write a variant out in full: a directory that transformers loads. A damaged variant stays damaged."""
        from evpack.checkpoint.delta import VARIANT_FILE, DeltaCheckpoint
        from evpack.checkpoint.full import write_full
        from evpack.checkpoint.reader import Checkpoint
        from evpack.errors import BadInput
        from evpack.publishing import AlreadyPublished, publishing
        from evpack.sealed import check_outside

        check_outside(out, "--out")
        if not (directory / VARIANT_FILE).exists():
            fault = f"is not a variant: it holds no {VARIANT_FILE}" if directory.is_dir() else "does not exist"
            raise BadInput(f"{directory} {fault}", "give models/<scenario> below a model of a run directory")
        if not any(directory.glob("*.safetensors")):
            raise BadInput(
                f"{directory}: the weights were removed after the evaluation",
                "plan with PACK_KEEP_VARIANTS=1, or `evpack invalidate` its create step and run that by `evpack step`",
            )
        source = Checkpoint(baseline or directory.absolute().parent / "baseline")
        for place in (directory, source.path):
            if out.resolve().is_relative_to(place.resolve()):
                raise BadInput(f"--out {out} lies inside {place}, which must stay as it is", "write elsewhere")
        opened = DeltaCheckpoint(source, directory)
        try:
            with publishing(out) as part:
                full = write_full(opened, source, part)
        except AlreadyPublished as error:
            raise BadInput(f"{out} exists already", "give a directory that does not exist") from error
        except OSError as error:
            raise BadInput(f"{out} cannot be written ({error.strerror})", "give another directory") from error
        typer.echo(f"{out}: {full.variant.scenario}, {len(full.names())} tensors, digest {full.digest()}")

"""`evpack plan`: what a campaign would do, or the planned run directory itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from evpack.errors import BadInput
from evpack.files import Json, read_json
from evpack.plan.campaign import Draft
from evpack.plan.model import CampaignPlan, StepType
from evpack.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `plan`."""

    @app.command()
    def plan(
        suite: str | None = typer.Option(None, "--suite", help="Suite; `evpack suites` lists them."),
        out: Path | None = typer.Option(None, "--out", help="Write the plan into this run directory."),
        repeats: int | None = typer.Option(None, "--repeats", min=0, help="Evaluate one edit N times more."),
        param: list[str] = typer.Option([], "--param", "-p", help="A setting as name=value; may be repeated."),
    ) -> None:
        """Show what a campaign would do; with --out, plan it."""
        from evpack.home import Home
        from evpack.steps.plan import dry_run, open_campaign

        given = {"output_dir": str(out) if out else None, "repeats": None if repeats is None else str(repeats)}
        params = parse_params(param, suite=suite, **given)
        home = Home.locate()
        if out is None:
            with naming_default_suite(params):
                draft = dry_run(params, home)
            windows = _windows_line(draft.documents["settings.json"])
            typer.echo("\n".join([*describe(draft.plan), windows, _space_line(draft)]))
        else:
            with naming_default_suite(params):
                run, written = open_campaign(params, home)
            windows = _windows_line(read_json(run.settings))
            typer.echo("\n".join([*describe(written), windows, f"planned in {run.root}"]))


@contextmanager
def naming_default_suite(params: Mapping[str, Any]) -> Iterator[None]:
    """Where nobody named a suite, let a refusal begin with the one that was taken; its text may speak of its models."""
    import os

    from evpack.rundir import RunDir
    from evpack.settings_resolve import peek_suite

    try:
        yield
    except BadInput as error:
        named = params.get("suite") or params.get("PACK_SUITE") or os.environ.get("PACK_SUITE", "").strip()
        given = params.get("output_dir")
        planned = params.get("resume") or (given and RunDir(Path(given)).plan.exists())
        if not named and not planned:  # a planned campaign has its own
            error.what = f"suite {peek_suite({}, {}, {})} (no other was named): {error.what}"
        raise


def parse_params(items: Sequence[str], **options: str | None) -> dict[str, Any]:
    """`name=value` items and the options that were given, as params of a run.

    Raises:
        BadInput: for an item without `=`.
    """
    params: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise BadInput(f"--param {item!r} is not name=value", "write e.g. --param seq_len=128")
        params[name] = value
    return params


def describe(plan: CampaignPlan) -> list[str]:
    """A plan in lines: models with lane and steps, changes of lane, then the scenarios."""
    counts = f"{len(plan.models)} models x {len(plan.scenarios)} scenarios, {len(plan.steps)} steps"
    lines = [f"suite {plan.suite}: {counts}"]
    for model in plan.models:
        steps = sum(step.model == model.name for step in plan.steps)
        lines.append(
            f"  {model.label}: {model.weights_gb:.3f} GB, {model.devices} devices, lane {model.lane}, {steps} steps"
        )
    lines += [f"  {change.text()}" for change in plan.lane_changes]
    runs = {step.scenario: len(step.runs) for step in plan.steps_of(StepType.EVALUATE)}
    for scenario in plan.scenarios:
        lines.append(f"  {scenario.id}: {scenario.strictness.value}, {runs[scenario.id]} runs")
    return lines


def _windows_line(settings: Json) -> str:
    """What a run is scored on; tier and profile may have asked for more windows than were given."""
    known = Settings.model_validate(settings)
    windows = f"{known.preview_windows} + {known.final_windows} windows of {known.seq_len} tokens"
    return f"a run has {windows} (tier {known.tier}, profile {known.profile})"


def _space_line(draft: Draft) -> str:
    everything = sum(space.all_gb for space in draft.space)
    least = sum(space.edits_gb + space.errors_gb for space in draft.space)
    return f"variants take at most {everything:.1f} GB, {least:.1f} GB where the disk has no room for all at one time"

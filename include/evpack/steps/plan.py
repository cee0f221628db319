"""Planning with what it needs from the rooms above `plan`: checks of text and pack, provenance of the code."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import evpack
from evpack.catalog.suites import settings_for
from evpack.data.preflight import check_source
from evpack.errors import BadInput
from evpack.files import digest_json, read_json, utc_now
from evpack.home import Home
from evpack.pack.provenance import collect_source_repo
from evpack.plan.campaign import Draft, build_plan, check_draft, plan_campaign
from evpack.plan.model import CampaignPlan, StepType, load_plan
from evpack.plan.preflight import check_selected
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.settings_gone import GONE
from evpack.settings_resolve import given_fields, idle_variables, unknown_variables
from evpack.steps.build_pack import check_pack
from evpack.steps.replan import replan
from evpack.steps.state import read_marker, running_step

log = logging.getLogger(__name__)

RUNS_NAME = "evidence_pack_runs"
"""Where campaigns go that were given neither a run directory nor a DAG run (the reference's name)."""


def open_campaign(
    params: Mapping[str, Any],
    home: Home,
    *,
    default_root: Path | None = None,
    event: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    dag_run: str | None = None,
    again: bool = False,
) -> tuple[RunDir, CampaignPlan]:
    """Plan a campaign, or take up the one that the run directory holds: models without memory move (`replan`).

    Args:
        params: params or conf of the run; None values are not set.
        default_root: run directory when neither `resume` nor `output_dir` names one (`Home.run_dir`).
        event: payload of the asset event that triggered the run.
        environ: environment to read settings from; this process's when None.
        dag_run: id of the DAG run that asks, None when there is none.
        again: that DAG run planned it before and was told to plan again: a campaign of other models, settings or code
            than now moves to archive/, and a new one takes its place.

    Raises:
        BadInput: before anything is written.
    """
    warn_idle(params, environ)
    settings = settings_for(params, event or {}, os.environ if environ is None else environ, home)
    run = run_dir(settings, default_root)
    check_mode(run, settings.suite_mode)
    source_repo = _source_repo(environ)
    if again and settings.resume is None and run.plan.exists():
        _make_way(run, build_plan(settings, home, utc_now()), source_repo)
    plan = plan_campaign(
        run,
        settings,
        home,
        source_repo=source_repo,
        check_source=partial(check_source, home=home),
        check_pack=check_pack,
        given=given_fields(params),
    )
    return run, replan(run, plan, home, dag_run)


def dry_run(
    params: Mapping[str, Any],
    home: Home,
    *,
    default_root: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Draft:
    """What `open_campaign` would plan in a fresh directory, all checks made and nothing written.

    Raises:
        BadInput: as `open_campaign` would.
    """
    warn_idle(params, environ)
    settings = settings_for(params, {}, os.environ if environ is None else environ, home)
    draft = build_plan(settings, home, utc_now())
    check_draft(draft, run_dir(settings, default_root), settings, partial(check_source, home=home), check_pack)
    _source_repo(environ)
    return draft


def warn_idle(params: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> None:
    """Log a line for each setting that changes nothing, and for each variable that is a misspelt setting.

    Args:
        environ: this process's when None.
    """
    environ = os.environ if environ is None else environ
    for name, known in idle_variables(params, environ).items():
        log.warning("warning: %s has no effect; %s", name, known)
    for name, near in unknown_variables(environ).items():
        instead = f"in its place: {GONE[name]}" if name in GONE else near and f"did you mean {near}?"
        mend = instead or "docs/tuning.md lists every setting"
        log.warning("warning: the environment's %s is not a setting and has no effect; %s", name, mend)


def place_and_mode(params: Mapping[str, Any], home: Home, default_root: Path) -> tuple[RunDir, str]:
    """Where `open_campaign` would plan, and which part of the campaign runs now (PACK_SUITE_MODE).

    The whole graph is planned, only this part is started.
    """
    settings = settings_for(params, {}, os.environ, home)
    return run_dir(settings, default_root), settings.suite_mode


def check_mode(run: RunDir, mode: str) -> None:
    """Refuse to go on from calibration where it is not done, or where edits have no parameters yet.

    Raises:
        BadInput: naming the models without a preset, or the edits.
    """
    if mode == "calibrate-only" or (mode == "full" and not run.plan.exists()):
        return
    plan = load_plan(run)
    try:
        check_selected(
            {(model.id, name): edit for model in plan.models for name, edit in plan.edits(model.name).items()}
        )
    except BadInput as error:
        error.what = f"{run.root} was planned for calibration only: {error.what}"
        error.mend = (
            f"measure them with `evpack tune`, and plan a new campaign with PACK_CALIBRATION_PRESET_DIR={run.presets}"
        )
        raise
    if mode != "run-only":
        return
    if missing := uncalibrated(run, plan):
        raise BadInput(
            f"run-only: no preset yet of {', '.join(missing)} in {run.root}",
            "run it with --calibrate-only first, or as a whole with `evpack campaign resume`",
        )


def uncalibrated(run: RunDir, plan: CampaignPlan) -> list[str]:
    """Labels of the models whose preset is not there, or not as its step left it."""
    markers = {step.model: read_marker(run, step.id) for step in plan.steps_of(StepType.DERIVE_PRESET)}
    return [model.label for model in plan.models if not ((marker := markers[model.name]) and marker.intact(run))]


def run_dir(settings: Settings, default_root: Path | None = None) -> RunDir:
    """The run directory: `resume`, else `output_dir`, else the default, else a new one below the current directory."""
    chosen = settings.resume or settings.output_dir or default_root
    if chosen is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        chosen = Path.cwd() / RUNS_NAME / f"{settings.suite}_{stamp}"
    return RunDir(Path(chosen).absolute())


def _make_way(run: RunDir, draft: Draft, source_repo: Mapping[str, Any]) -> None:
    """Move a campaign to archive/ unless it would be planned the same now.

    Raises:
        BadInput: while one of its steps runs.
    """
    frozen = load_plan(run)
    if _same(run, frozen, draft, source_repo):
        return
    if step := running_step(run, frozen):
        raise BadInput(f"step {step} of {run.root} is running", "wait for its end, or stop it; then plan again")
    target = run.archive / f"campaign-{uuid.uuid4().hex[:8]}"
    target.mkdir(parents=True)
    log.warning("models, settings or code are others than when this was planned; the old campaign moves to %s", target)
    # state/ last: as long as it is there, a kill in between is made good by planning again.
    for path in sorted(run.root.iterdir(), key=lambda path: path == run.plan.parent):
        if path != run.archive:
            path.rename(target / path.name)


def _same(run: RunDir, frozen: CampaignPlan, draft: Draft, source_repo: Mapping[str, Any]) -> bool:
    """Whether a campaign is what would be planned now, but for times and what the disk has room for."""
    passing = {"created_at": None, "variant_budget_gb": None}
    if frozen.as_planned().to_json() | passing != draft.plan.to_json() | passing:
        return False
    documents = {name: value for name, value in draft.documents.items() if name != run.model_revisions.name}
    for name, value in documents.items():
        path = run.plan.parent / name
        if not path.is_file() or digest_json(read_json(path)) != digest_json(value):
            return False
    code = read_json(run.source_repo) if run.source_repo.is_file() else {}
    return {**code, "recorded_at": None} == {**source_repo, "recorded_at": None}


def _source_repo(environ: Mapping[str, str] | None) -> dict[str, Any]:
    return collect_source_repo(Path(evpack.__file__).parent, environ=environ)

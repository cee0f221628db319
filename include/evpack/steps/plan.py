"""Planning with everything it needs from the rooms above `plan`: the text check and the provenance of the code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import evpack
from evpack.catalog.suites import settings_for
from evpack.data.preflight import check_source
from evpack.files import utc_now
from evpack.home import Home
from evpack.pack.provenance import collect_source_repo
from evpack.plan.campaign import Draft, build_plan, check_draft, plan_campaign
from evpack.plan.model import CampaignPlan
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.settings_resolve import given_fields

RUNS_NAME = "evidence_pack_runs"
"""Where campaigns go that were given neither a run directory nor a DAG run (the reference's name)."""


def open_campaign(
    params: Mapping[str, Any],
    home: Home,
    *,
    default_root: Path | None = None,
    event: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[RunDir, CampaignPlan]:
    """Plan a campaign, or take up the one that the run directory holds.

    Args:
        params: params or conf of the run; None values are not set.
        default_root: run directory when neither `resume` nor `output_dir` names one (`Home.run_dir`).
        event: payload of the asset event that triggered the run.
        environ: environment to read settings from; this process's when None.

    Raises:
        BadInput: before anything is written.
    """
    settings = settings_for(params, event or {}, os.environ if environ is None else environ, home)
    run = run_dir(settings, default_root)
    plan = plan_campaign(
        run,
        settings,
        home,
        source_repo=_source_repo(environ),
        check_source=partial(check_source, home=home),
        given=given_fields(params),
    )
    return run, plan


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
    settings = settings_for(params, {}, os.environ if environ is None else environ, home)
    draft = build_plan(settings, home, utc_now())
    check_draft(draft, run_dir(settings, default_root), settings, partial(check_source, home=home))
    _source_repo(environ)
    return draft


def run_dir(settings: Settings, default_root: Path | None = None) -> RunDir:
    """The run directory: `resume`, else `output_dir`, else the default, else a new one below the current directory."""
    chosen = settings.resume or settings.output_dir or default_root
    if chosen is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        chosen = Path.cwd() / RUNS_NAME / f"{settings.suite}_{stamp}"
    return RunDir(Path(chosen).absolute())


def _source_repo(environ: Mapping[str, str] | None) -> dict[str, Any]:
    return collect_source_repo(Path(evpack.__file__).parent, environ=environ)

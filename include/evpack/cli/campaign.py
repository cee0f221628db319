"""`evpack campaign`: run, resume, look at campaigns."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evpack.errors import BadInput, CampaignExit, EvpackError

if TYPE_CHECKING:
    from evpack.airflow.client import Client
    from evpack.airflow.config import Deployment
    from evpack.home import Home
    from evpack.rundir import RunDir

POLL_S = 1.0
"""Seconds between looks at a running campaign."""


def register(app: typer.Typer) -> None:
    """Add `campaign` with its sub-commands."""
    group = typer.Typer(no_args_is_help=True, help="Run campaigns and look at them.")
    app.add_typer(group, name="campaign")

    @group.command()
    def run(
        suite: str | None = typer.Option(None, "--suite", help="Suite; `evpack suites` lists them."),
        param: list[str] = typer.Option([], "--param", "-p", help="A setting as name=value; may be repeated."),
        output_dir: Path | None = typer.Option(None, "--output-dir", help="Run directory; else below EVPACK_HOME."),
        scenarios: str | None = typer.Option(None, "--scenarios", help="Scenario ids with commas, or a manifest."),
        calibrate_only: bool = typer.Option(False, "--calibrate-only", help="Only baselines and presets, no verdict."),
        run_only: bool = typer.Option(False, "--run-only", help="The rest of a calibrated campaign (--output-dir)."),
        repeats: int | None = typer.Option(None, "--repeats", min=0, help="Evaluate one edit N times more."),
        quick: bool = typer.Option(False, "--quick", help="Without a scheduler, one task after the other."),
    ) -> None:
        """Run a campaign through Airflow and print its verdict. Exit 0 PASS, 1 FAIL, 2 bad input, 3 INCOMPLETE."""
        from evpack.cli.plan import parse_params

        if calibrate_only and run_only:
            raise BadInput("--calibrate-only and --run-only exclude each other", "give one, or none for all")
        options = {
            "suite": suite,
            "scenarios": scenarios,
            "output_dir": str(output_dir) if output_dir else None,
            "repeats": None if repeats is None else str(repeats),
            "suite_mode": "calibrate-only" if calibrate_only else "run-only" if run_only else None,
        }
        raise typer.Exit(start(parse_params(param, **options), quick=quick))

    @group.command()
    def resume(
        run_dir: Path = typer.Argument(help="Run directory of a planned campaign."),
        quick: bool = typer.Option(False, "--quick", help="Without a scheduler, one task after the other."),
    ) -> None:
        """Go on with a campaign: finished steps are kept as far as they are still valid. Exit codes as `run`."""
        raise typer.Exit(start({"resume": str(run_dir.absolute())}, quick=quick))

    @group.command()
    def status(run_dir: Path = typer.Argument(help="Run directory of a planned campaign.")) -> None:
        """Show how far a campaign is and what came of it. Exit codes as `run`."""
        raise typer.Exit(show_status(run_dir))

    @group.command("list")
    def list_() -> None:
        """List the campaigns of this EVPACK_HOME, newest first."""
        list_campaigns()


def start(params: Mapping[str, Any], *, quick: bool) -> int:
    """Check the input, run the campaign in an Airflow of its own, print the outcome.

    Returns:
        A `CampaignExit`.

    Raises:
        BadInput: before anything is started or written.
    """
    from evpack.airflow.config import CAMPAIGN_DAG, Deployment
    from evpack.cli.campaign_view import console, show_calibration, show_lanes, show_outcome
    from evpack.home import Home
    from evpack.runtime.outcome import calibration_outcome, campaign_outcome, verify_command

    home = Home.locate()
    deployment = Deployment.locate(home, quick=quick)
    run_id = _run_id(quick)
    run, conf, mode = _checked(params, home, home.run_dir(CAMPAIGN_DAG, run_id))
    home.create()
    screen = console()
    print(f"run directory: {run.root}", flush=True)
    try:
        if quick:
            _run_quick(deployment, {**conf, "output_dir": str(run.root)}, run)
        else:
            _run_scheduled(deployment, CAMPAIGN_DAG, run_id, conf, run)
    except BadInput:
        raise
    except EvpackError as error:
        print(f"evpack: {error.diagnostics()}", file=sys.stderr)
        print(f"the campaign did not end; {_go_on(run)}", file=sys.stderr)
        return CampaignExit.INCOMPLETE
    except KeyboardInterrupt:
        print(f"stopped; {_go_on(run)}", file=sys.stderr)
        raise
    show_lanes(run, home, screen)
    if mode == "calibrate-only":
        outcome = calibration_outcome(run)
        show_calibration(run, outcome, screen)
        return outcome.exit
    outcome = campaign_outcome(run, dag_run=None if quick else run_id)
    show_outcome(run, outcome, screen)
    if command := verify_command(run, outcome, home):
        print(f"verify the pack with: {command}")  # not on the screen, which would break the line
    return outcome.exit


def show_status(run_dir: Path) -> int:
    """Progress and, unless it still runs, the outcome of a run directory; 3 (no verdict yet) while it runs.

    Raises:
        BadInput: when it was never planned.
    """
    from evpack.cli.campaign_view import console, show_lanes, show_outcome, show_progress
    from evpack.home import Home
    from evpack.plan.model import load_plan
    from evpack.rundir import RunDir
    from evpack.runtime.outcome import campaign_outcome
    from evpack.steps.state import running_step

    run = RunDir(run_dir.absolute())
    screen = console()
    plan = load_plan(run)
    show_progress(run, plan, screen)
    show_lanes(run, Home.locate(), screen)
    if running_step(run, plan):
        print(f"run directory: {run.root}\nthe campaign runs; no verdict yet")
        return CampaignExit.INCOMPLETE
    outcome = campaign_outcome(run)
    show_outcome(run, outcome, screen)
    return outcome.exit


def list_campaigns() -> None:
    """One line per run directory below EVPACK_HOME/runs."""
    from evpack.home import Home
    from evpack.plan.model import load_plan
    from evpack.rundir import RunDir
    from evpack.runtime.outcome import campaign_state

    lines = []
    for path in Home.locate().runs.glob("*/*"):
        try:
            plan = load_plan(RunDir(path))
            lines.append(f"{plan.created_at}  {campaign_state(RunDir(path), plan):<10}  {plan.suite:<9}  {path}")
        except EvpackError as error:
            lines.append(f"{'-':<20}  {'unplanned':<10}  {'-':<9}  {path} ({error.what})")
    print("\n".join(sorted(lines, reverse=True)) or "no campaigns yet")


def _run_id(quick: bool) -> str:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return f"{'quick' if quick else 'run'}-{stamp}-{secrets.token_hex(2)}"


def _checked(params: Mapping[str, Any], home: Home, default_root: Path) -> tuple[RunDir, dict[str, Any], str]:
    """Everything that can be refused, refused now; the run directory, the conf of the DAG run, what part runs.

    The conf names what params and this environment set, so that an Airflow started elsewhere plans the same.
    """
    import os

    from evpack.catalog.suites import settings_for
    from evpack.cli.plan import naming_default_suite
    from evpack.plan.hosts import check_one_host
    from evpack.plan.model import load_plan
    from evpack.runtime.choice import check_runtime
    from evpack.steps.plan import check_mode, dry_run, run_dir

    check_runtime()
    check_one_host()
    settings = settings_for(params, {}, os.environ, home)
    run = run_dir(settings, default_root)
    check_mode(run, settings.suite_mode)
    if settings.resume is not None or settings.suite_mode == "run-only":
        load_plan(run)
        conf = {name: value for name, value in params.items() if name != "output_dir"}
        return run, {**conf, "resume": str(run.root), "suite_mode": settings.suite_mode}, settings.suite_mode
    if run.plan.exists():
        raise BadInput(f"{run.root} holds a campaign already", f"go on with `evpack campaign resume {run.root}`")
    with naming_default_suite(params):
        dry_run(params, home, default_root=default_root)
    plain = settings_for({"suite": settings.suite}, {}, {}, home).to_json()
    conf = {name: value for name, value in settings.to_json().items() if value != plain[name]}
    conf.pop("signing_key", None)  # a secret's place: from the environment only
    return run, {**conf, "suite": settings.suite}, settings.suite_mode


def _run_scheduled(deployment: Deployment, dag_id: str, run_id: str, conf: Mapping[str, Any], run: RunDir) -> None:
    """Start Airflow, trigger the run, show progress until it ends."""
    from evpack.airflow.client import FINISHED, Client
    from evpack.airflow.embedded import running
    from evpack.airflow.occupancy import check_free
    from evpack.cli.campaign_view import LiveView, console

    print("starting Airflow", flush=True)
    with running(deployment, _say) as airflow, Client(airflow.endpoint) as client:
        _check_pools(client, deployment.home)
        check_free(client, run)
        client.trigger(dag_id, run_id, conf)
        endpoint = airflow.endpoint
        print(f"Airflow UI: {endpoint.run_url(dag_id, run_id)}", flush=True)
        print(f"  user {endpoint.user}, password in {deployment.passwords}", flush=True)
        try:
            with LiveView(run, console()) as view:
                while client.run_state(dag_id, run_id) not in FINISHED:
                    airflow.check()
                    view.update()
                    time.sleep(POLL_S)
                view.update()
        except KeyboardInterrupt:
            if not airflow.ours:  # somebody else's Airflow would go on with it
                client.stop_run(dag_id, run_id)
            raise


def _go_on(run: RunDir) -> str:
    if not run.plan.is_file():
        return "nothing was planned yet: run it again"
    return f"go on with: evpack campaign resume {run.root}"


def _check_pools(client: Client, home: Home) -> None:
    """Refuse an Airflow whose pools somebody made smaller than what the plan was checked against; tell of larger ones.

    Raises:
        BadInput: when a step could wait forever.
    """
    from evpack.runtime.pools import made_pools, pool_drift

    made, running = made_pools(home), client.pools()
    drift = pool_drift(made, running)
    smaller = [line for name, line in drift.items() if running.get(name, 0) < made[name]]
    if smaller:
        raise BadInput("; ".join(smaller), "run `evpack airflow setup`, or mend the pool in Airflow's UI")
    for line in drift.values():
        print(f"warning: {line}", flush=True)


def _run_quick(deployment: Deployment, conf: Mapping[str, Any], run: RunDir) -> None:
    """`airflow dags test`: every task in one process, no scheduler, no pools, no priorities."""
    from evpack.airflow.config import CAMPAIGN_DAG
    from evpack.airflow.embedded import dags_test
    from evpack.cli.campaign_view import LiveView, console

    with dags_test(deployment, CAMPAIGN_DAG, conf, _say) as test, LiveView(run, console()) as view:
        while test.runs():
            view.update()
            time.sleep(POLL_S)
        view.update()
        if not run.plan.is_file():
            test.check()


def _say(line: str) -> None:
    print(line, flush=True)

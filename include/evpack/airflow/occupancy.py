"""One DAG run at a time works in a run directory: two would redo each other's steps and stop each other's containers.

state/dag_run.json names the one at work. A run that was started, or of which a task was cleared, takes the directory
over when Airflow says that the other one has ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from evpack.airflow.client import FINISHED
from evpack.errors import BadInput, EvidenceError
from evpack.files import read_json, write_json
from evpack.plan.model import load_plan
from evpack.publishing import locked
from evpack.rundir import RunDir
from evpack.steps.state import running_step

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evpack.airflow.client import Client

Owner = dict[str, str]
"""``{dag_id, run_id}``."""

UNFINISHED = ("queued", "running")
"""States of a DAG run that may still start steps."""

DYING_S = 30.0
"""Longest wait for steps of a run that has ended: a task that was failed by hand hears of it after some ten seconds."""

_POLL_S = 0.5


def occupy(context: Context, run: RunDir, *, planned: bool = False) -> None:
    """Take a planned run directory for the DAG run that asks; nothing happens when it has it already.

    Args:
        planned: whether this DAG run has just planned the campaign.

    Raises:
        BadInput: while another DAG run is unfinished, or a step of another one computes.
    """
    dag_run = context["dag_run"]
    me = {"dag_id": str(dag_run.dag_id), "run_id": str(dag_run.run_id)}
    if not planned and at_work(run) == me:
        return
    with locked(run.plan.parent):
        found = _document(run)
        owner = at_work(run)
        if owner and owner != me and _unfinished(context, owner):
            raise _refusal(run, owner)
        if owner != me and not planned:
            _wait_for_steps(run)
        write_json(run.dag_run, {"at_work": me, "planned_by": me if planned else found.get("planned_by")})


def check_own(context: Context, run: RunDir, *, named: bool) -> None:
    """Refuse to take up a campaign that was another DAG run's unless that is what was asked for.

    Run ids that differ only in what a file name cannot hold share a directory, and OUTPUT_DIR gives every run the same:
    what is valid there would be kept, and pass as this run's.

    Args:
        named: whether the run's own params name the directory.

    Raises:
        BadInput: naming the other one.
    """
    dag_run, owner = context["dag_run"], at_work(run)
    me = {"dag_id": str(dag_run.dag_id), "run_id": str(dag_run.run_id)}
    if owner and owner != me and not named and not planned_by(context, run):
        raise BadInput(
            f"{run.root} holds the campaign of DAG run {owner['run_id']} of {owner['dag_id']}",
            "take another run id, or leave OUTPUT_DIR unset; the param `resume` goes on with a campaign",
        )


def planned_by(context: Context, run: RunDir) -> bool:
    """Whether the DAG run that asks has planned the campaign of a run directory."""
    dag_run = context["dag_run"]
    return _document(run).get("planned_by") == {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id}


def check_free(client: Client, run: RunDir) -> None:
    """The same question over the REST API, before a DAG run is started.

    Raises:
        BadInput: while a DAG run of that Airflow works in the directory.
    """
    owner = at_work(run)
    if owner is None:
        return
    try:
        state = client.run_state(owner["dag_id"], owner["run_id"])
    except BadInput:  # a run of another Airflow, or one that was deleted
        return
    if state not in FINISHED:
        raise _refusal(run, owner)


def at_work(run: RunDir) -> Owner | None:
    """The DAG run that has, or last had, a run directory; None when it was never one's."""
    owner = _document(run).get("at_work")
    return owner if isinstance(owner, dict) and {"dag_id", "run_id"} <= set(owner) else None


def _unfinished(context: Context, owner: Owner) -> bool:
    """Whether a DAG run may still start steps, by this Airflow; one that it does not know cannot."""
    count = context["ti"].get_dr_count(owner["dag_id"], run_ids=[owner["run_id"]], states=list(UNFINISHED))
    return bool(count)


def _wait_for_steps(run: RunDir) -> None:
    """Let the steps of whoever had the directory come to their end.

    Raises:
        BadInput: naming one that goes on.
    """
    plan, deadline = load_plan(run), time.monotonic() + DYING_S
    while step := running_step(run, plan):
        if time.monotonic() >= deadline:
            raise BadInput(
                f"step {step} of {run.root} is running", "wait for its end, or stop it; then clear this task"
            )
        time.sleep(_POLL_S)


def _refusal(run: RunDir, owner: Owner) -> BadInput:
    return BadInput(
        f"DAG run {owner['run_id']} of {owner['dag_id']} is at work in {run.root}",
        "wait for its end, or mark it as failed in Airflow's UI; then try again",
    )


def _document(run: RunDir) -> dict[str, Any]:
    try:
        value = read_json(run.dag_run)
    except (FileNotFoundError, EvidenceError):
        return {}
    return value if isinstance(value, dict) else {}

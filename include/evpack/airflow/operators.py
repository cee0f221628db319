"""The operators: each Airflow task plans, selects, runs one step, or judges. What a step does is not their business."""

# Airflow's classes have no types mypy can follow (see pyproject), so they count as Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.branch import BaseBranchOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRescheduleException

from evpack.errors import EvpackError, StepExit
from evpack.home import Home
from evpack.plan.model import StepType, load_plan
from evpack.rundir import RunDir

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evpack.airflow.items import Item

PLAN_TASK = "plan"
RUN_DIR_KEY = "run_dir"
"""XCom key under which `plan` gives the run directory."""

RETRIED = frozenset({StepExit.TRANSIENT, StepExit.OUT_OF_MEMORY})
"""Exit codes of a step that another try may cure."""


DEVICE_PAUSE = timedelta(minutes=1)
"""How long a task that got no device gives its slots to others before it asks again."""

log = logging.getLogger(__name__)


class BlockedTask(AirflowFailException):
    """A step (or a selection) whose needs are missing: a failure, never a skip."""


class StepFailed(AirflowFailException):
    """A step that no further try can cure."""


class StepRetry(AirflowException):
    """A step that another try may cure."""


class PlanOperator(BaseBranchOperator):
    """Settings, plan and run directory; then the lanes that have models, all others are skipped."""

    def choose_branch(self, context: Context) -> list[str]:
        """Plan the campaign and name the tasks that follow."""
        from evpack.airflow.items import used_lanes
        from evpack.steps.plan import open_campaign

        home = Home.locate()
        default_root = home.run_dir(self.dag_id, context["dag_run"].run_id)
        try:
            run, plan = open_campaign(dict(context["params"]), home, default_root=default_root)
        except EvpackError as error:
            raise StepFailed(error.diagnostics()) from None
        context["ti"].xcom_push(key=RUN_DIR_KEY, value=str(run.root))
        lanes = used_lanes(plan)
        self.log.info("run directory %s, lanes %s", run.root, ", ".join(lanes))
        followed = {f"{lane}.{task}" for lane in lanes for task in (SelectModels.TASK, SelectCells.TASK)}
        return [
            task
            for task in sorted(self.downstream_task_ids)
            if task in followed or task == StepType.COMPILE_VERDICT.value
        ]


class SelectModels(BaseOperator):
    """The models of a lane, to expand its first group over."""

    TASK = "select_models"

    def __init__(self, *, lane: str, **kwargs: Any) -> None:
        super().__init__(task_id=self.TASK, **kwargs)
        self.lane = lane

    def execute(self, context: Context) -> list[Item]:
        """One item per model."""
        from evpack.airflow.items import model_items

        return model_items(load_plan(run_dir_of(context)), self.lane)


class SelectCells(BaseOperator):
    """The model x scenario cells of a lane, to expand its second group over."""

    TASK = "select_cells"

    def __init__(self, *, lane: str, **kwargs: Any) -> None:
        super().__init__(task_id=self.TASK, **kwargs)
        self.lane = lane

    def execute(self, context: Context) -> list[Item]:
        """One item per cell."""
        from evpack.airflow.items import cell_items

        return cell_items(load_plan(run_dir_of(context)), self.lane)


class StepOperator(BaseOperator):
    """Runs one step of a model or cell in a process of its own. The task id is the step type."""

    template_fields: Sequence[str] = ("subject", "title")

    def __init__(self, *, subject: str, title: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject = subject
        self.title = title

    def execute(self, context: Context) -> None:
        """Run the step, its output in the task log; its exit code decides how the task ends."""
        from evpack.runtime.process import StepProcess, step_command, step_environment
        from evpack.runtime.threads import frozen_settings, threads_for

        run = run_dir_of(context)
        step_type = StepType(self.task_id.rpartition(".")[2])
        step_id = f"{self.subject}.{step_type}"
        command = step_command(run.root, step_id, attempt=context["ti"].try_number, dag_run=context["dag_run"].run_id)
        plan = load_plan(run)
        environ = step_environment(
            os.environ, home=Home.locate(), threads=threads_for(plan, step_type), network=frozen_settings(run).net
        )
        self._process = StepProcess(command, environ)
        code = self._process.run(self.log.info)
        end_task(code, step_id)

    def on_kill(self) -> None:
        """Stop the step's process group; called when the task is cleared, failed by hand or timed out."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.terminate()


class CampaignStepOperator(BaseOperator):
    """Runs one campaign-level step (verdict, pack, verification) in the worker process. The task id is the step id."""

    def execute(self, context: Context) -> None:
        """Run the step; its exit code decides how the task ends."""
        from evpack.steps.runner import run_step

        run = run_dir_of(context)
        try:
            code = run_step(run.root, self.task_id, attempt=context["ti"].try_number, dag_run=context["dag_run"].run_id)
        except EvpackError as error:
            raise StepFailed(error.diagnostics()) from None
        end_task(code, self.task_id)


class GateOperator(BaseOperator):
    """The only leaf: fails the run unless the verdict is PASS and the pack verifies."""

    def execute(self, context: Context) -> None:
        """Judge what this DAG run left in the run directory."""
        from evpack.errors import CampaignExit
        from evpack.runtime.outcome import campaign_outcome

        outcome = campaign_outcome(run_dir_of(context), dag_run=context["dag_run"].run_id)
        self.log.info("%s", outcome.line())
        if outcome.exit is not CampaignExit.PASS:
            raise StepFailed(outcome.line())


def run_dir_of(context: Context) -> RunDir:
    """The run directory that `plan` gave.

    Raises:
        BlockedTask: when `plan` did not finish.
    """
    value = context["ti"].xcom_pull(task_ids=PLAN_TASK, key=RUN_DIR_KEY)
    if not value:
        raise BlockedTask("the task `plan` gave no run directory; see its log, mend it and clear it")
    return RunDir(Path(str(value)))


def end_task(code: int, step_id: str) -> None:
    """Turn a step's exit code into the way its task ends.

    Raises:
        BlockedTask: when something the step needs is missing.
        AirflowRescheduleException: when its devices are all in use; costs no retry.
        StepRetry: when another try may cure it (also when a signal ended the step).
        StepFailed: when no further try can.
    """
    if code == StepExit.OK:
        return
    if code < 0:
        raise StepRetry(f"{step_id} was ended by {signal.Signals(-code).name}")
    try:
        exit_ = StepExit(code)
    except ValueError:
        raise StepFailed(f"{step_id} ended with the unknown code {code}: a defect, see the log above") from None
    message = f"{step_id}: {exit_.name.lower()} (exit {code}), see the log above"
    if exit_ is StepExit.NO_DEVICE:
        log.warning("%s; the task gives its slots back and asks again in %s", message, DEVICE_PAUSE)
        raise AirflowRescheduleException(datetime.now(UTC) + DEVICE_PAUSE)
    if exit_ is StepExit.BLOCKED:
        raise BlockedTask(message)
    raise StepRetry(message) if exit_ in RETRIED else StepFailed(message)

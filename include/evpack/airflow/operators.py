"""The operators: each Airflow task plans, selects, runs one step, or judges. What a step does is not their business."""

# Airflow's classes have no types mypy can follow (see pyproject), so they count as Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.branch import BaseBranchOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from evpack.airflow.endings import (
    PLAN_TASK,
    RUN_DIR_KEY,
    BlockedTask,
    StepFailed,
    check_lane,
    check_tries,
    end_task,
    failed,
    frozen_limits,
    nothing_to_do,
    planning_limits,
)
from evpack.airflow.occupancy import check_own, occupy, planned_by
from evpack.errors import BadInput, EvpackError
from evpack.home import Home
from evpack.plan.model import CampaignPlan, StepType, load_plan
from evpack.publishing import locked
from evpack.rundir import RunDir

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evpack.airflow.items import Item

MODE_KEY = "suite_mode"
"""XCom key under which `plan` gives the part of the campaign that runs."""


class PlanOperator(BaseBranchOperator):
    """Settings, plan and run directory; then the lanes that have models, all others are skipped."""

    def choose_branch(self, context: Context) -> list[str]:
        """Plan the campaign and name the tasks that follow."""
        from evpack.airflow.items import used_lanes

        limits = planning_limits(dict(context["params"]))
        check_tries(context, limits, self.task_id)
        try:
            run, plan, mode = self._plan(context, Home.locate())
        except EvpackError as error:
            raise failed(error, limits) from None
        context["ti"].xcom_push(key=RUN_DIR_KEY, value=str(run.root))
        context["ti"].xcom_push(key=MODE_KEY, value=mode)
        lanes = used_lanes(plan)
        self.log.info("run directory %s, lanes %s, mode %s", run.root, ", ".join(lanes), mode)
        followed = {f"{lane}.{task}" for lane in lanes for task in SELECTIONS[mode]}
        return [
            task
            for task in sorted(self.downstream_task_ids)
            if task in followed or task == StepType.COMPILE_VERDICT.value
        ]

    def _plan(self, context: Context, home: Home) -> tuple[RunDir, CampaignPlan, str]:
        """The run directory, planned and taken for this DAG run; the plan, and the part of it that runs.

        Raises:
            EvpackError: why it is not planned.
        """
        from airflow.sdk.configuration import conf

        from evpack.plan.memory import check_lanes
        from evpack.runtime.choice import check_runtime
        from evpack.steps.plan import open_campaign, place_and_mode

        params, run_id = dict(context["params"]), context["dag_run"].run_id
        default_root = home.run_dir(self.dag_id, run_id)
        if not home.pools.is_file():
            raise BadInput(f"no pools were made ({home.pools})", "run `evpack airflow setup`, else steps wait forever")
        check_runtime()
        named = _names_place(params)
        with locked(home.root):  # two runs that are given one directory must not both find it empty
            run, mode = place_and_mode(params, home, default_root)
            planned, again = run.plan.exists(), planned_by(context, run)
            if planned:
                check_own(context, run, named=named)
                occupy(context, run)
            run, plan = open_campaign(params, home, default_root=default_root, dag_run=run_id, again=again)
            occupy(context, run, planned=again or not planned)
        check_lanes(plan, home.pools, conf.getint("core", "max_map_length"))
        return run, plan, mode


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


SELECTIONS = {
    "full": (SelectModels.TASK, SelectCells.TASK),
    "calibrate-only": (SelectModels.TASK,),
    "run-only": (SelectCells.TASK,),
}
"""Which groups of a lane start, by mode; the others are skipped. All are planned in every mode."""


class StepOperator(BaseOperator):
    """Runs one step of a model or cell in a process of its own. The task id is the step type."""

    template_fields: Sequence[str] = ("subject", "title")

    def __init__(self, *, subject: str, title: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject = subject
        self.title = title

    def execute(self, context: Context) -> None:
        """Run the step, its output in the task log; its exit code decides how the task ends."""
        from evpack.runtime.failures import Output, memory_kills
        from evpack.runtime.process import StepProcess, step_command, step_environment
        from evpack.runtime.threads import frozen_settings, threads_for

        run = run_dir_of(context)
        step_id = f"{self.subject}.{StepType(self.task_id.rpartition('.')[2])}"
        check_tries(context, frozen_limits(run), step_id)
        plan = load_plan(run)
        check_lane(self.task_id, plan, step_id)
        if nothing_to_do(context, run, plan, step_id):
            return
        command = step_command(run.root, step_id, attempt=context["ti"].try_number, dag_run=context["dag_run"].run_id)
        threads = threads_for(plan, plan.step(step_id))
        environ = step_environment(os.environ, home=Home.locate(), threads=threads, network=frozen_settings(run).net)
        self._process = StepProcess(command, environ)
        output = Output(self.log)
        kills = memory_kills()
        code = self._process.run(output)
        end_task(code, step_id, run, lines=output.last, memory_killed=memory_kills() > kills)

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
        check_tries(context, frozen_limits(run), self.task_id)
        _skip_without_cells(context)
        try:
            code = run_step(run.root, self.task_id, attempt=context["ti"].try_number, dag_run=context["dag_run"].run_id)
        except EvpackError as error:
            raise failed(error, frozen_limits(run)) from None
        end_task(code, self.task_id, run)


class GateOperator(BaseOperator):
    """The only leaf: fails the run unless the verdict is PASS and the pack verifies, or all presets are there."""

    def execute(self, context: Context) -> None:
        """Judge what this DAG run left in the run directory."""
        from evpack.errors import CampaignExit
        from evpack.runtime.notify import notify
        from evpack.runtime.outcome import calibration_outcome, campaign_outcome
        from evpack.steps.runner import write_summaries

        run = run_dir_of(context)
        with suppress(EvpackError):  # a plan that is gone, a full disk: the outcome says so
            write_summaries(run, load_plan(run))
        calibrates = _mode(context) == "calibrate-only"
        outcome = calibration_outcome(run) if calibrates else campaign_outcome(run, dag_run=context["dag_run"].run_id)
        self.log.info("%s", outcome.line())
        notify(Home.locate(), "campaign_ended", f"{run.root}: {outcome.line()}")
        if outcome.exit is not CampaignExit.PASS:
            raise StepFailed(outcome.line())


def run_dir_of(context: Context) -> RunDir:
    """The run directory that `plan` gave.

    Raises:
        BlockedTask: when `plan` did not finish.
        StepFailed: while another DAG run works there.
    """
    value = context["ti"].xcom_pull(task_ids=PLAN_TASK, key=RUN_DIR_KEY)
    if not value:
        raise BlockedTask("the task `plan` gave no run directory; see its log, mend it and clear it")
    run = RunDir(Path(str(value)))
    try:
        occupy(context, run)
    except EvpackError as error:
        raise failed(error, frozen_limits(run)) from None
    return run


def _names_place(params: Mapping[str, Any]) -> bool:
    """Whether a run's own params name its run directory.

    Raises:
        BadInput: when it is relative: a worker's current directory is Airflow's, not that of who asks.
    """
    named = {name: str(params[name]) for name in ("resume", "output_dir") if params.get(name)}
    for name, value in named.items():
        if not value.startswith(("/", "~")):
            raise BadInput(f"{name}={value!r} is relative to no directory of yours", "give an absolute path")
    return bool(named)


def _mode(context: Context) -> str:
    return str(context["ti"].xcom_pull(task_ids=PLAN_TASK, key=MODE_KEY))


def _skip_without_cells(context: Context) -> None:
    """There is no verdict where no cell was to run."""
    if _mode(context) == "calibrate-only":
        raise AirflowSkipException("calibrate-only: no verdict")

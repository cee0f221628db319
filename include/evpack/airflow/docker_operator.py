"""Runs a step's work in a container; the books of the step are kept here, in the worker process.

Of DockerOperator only its place in Airflow is used: its way of running a container knows no read-only root, no limit of
processes and no dropped capabilities, and takes results from the last line of a log.
"""

# Airflow's classes have no types mypy can follow (see pyproject), so they count as Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.docker.operators.docker import DockerOperator

from evpack.airflow.endings import check_lane, check_tries, end_task, failed, frozen_limits
from evpack.airflow.operators import run_dir_of
from evpack.errors import BadInput, EvpackError, Transient
from evpack.plan.model import StepType, load_plan
from evpack.runtime.docker_spec import WORKER_IMAGE_ENV, ContainerLimits

if TYPE_CHECKING:
    from airflow.sdk import Context

    from docker import APIClient


class ContainerStepOperator(DockerOperator):
    """Runs one step of a model or cell in a container of its own. The task id is the step type."""

    template_fields: Sequence[str] = ("subject", "title")

    def __init__(self, *, subject: str, title: str, **kwargs: Any) -> None:
        super().__init__(image=os.environ.get(WORKER_IMAGE_ENV, ""), **kwargs)
        self.subject = subject
        self.title = title

    def execute(self, context: Context) -> None:
        """Run the step, its output in the task log; its exit code decides how the task ends."""
        from evpack.runtime.docker_step import ContainerWork
        from evpack.steps.runner import run_step

        ti = context["ti"]
        labels = {
            "dag_id": ti.dag_id,
            "dag_run": context["dag_run"].run_id,
            "task_id": ti.task_id,
            "map_index": str(ti.map_index),
            "try": str(ti.try_number),
        }
        self._work = ContainerWork(_engine, labels)  # before all else: a stop that comes while the step begins binds it
        run = run_dir_of(context)
        step_id = f"{self.subject}.{StepType(self.task_id.rpartition('.')[2])}"
        limits = frozen_limits(run)
        check_tries(context, limits, step_id)
        check_lane(self.task_id, load_plan(run), step_id)
        try:
            code = run_step(
                run.root, step_id, attempt=ti.try_number, dag_run=context["dag_run"].run_id, work=self._work
            )
        except EvpackError as error:
            raise failed(error, limits) from None
        end_task(code, step_id, run)

    def on_kill(self) -> None:
        """Stop and remove the container; called when the task is cleared, failed by hand or timed out."""
        work = getattr(self, "_work", None)
        if work is not None:
            work.stop()


def _engine() -> tuple[APIClient, ContainerLimits]:
    """The engine and the limits of this deployment.

    Raises:
        BadInput: when no image is pinned.
        Transient: when the engine does not answer: it did when the campaign was planned.
    """
    from evpack.runtime.docker_engine import connect

    try:
        client = connect()
    except BadInput as error:
        raise Transient(error.what, error.mend) from error
    return client, ContainerLimits.of(os.environ)

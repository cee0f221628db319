"""How a step's end becomes its task's end: typed exceptions from exit codes, and the policy of retries."""

# Airflow's classes have no types mypy can follow (see pyproject), so they count as Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import logging
import os
import random
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRescheduleException

from evpack.errors import NO_MEMORY, WAITING, Blocked, EvpackError, StepExit
from evpack.home import Home
from evpack.plan.model import CampaignPlan, load_plan
from evpack.rundir import RunDir
from evpack.runtime.failures import RETRIED, STEP_CODES, RetryLimits, class_of, crashed
from evpack.settings import MOST_RETRIES, Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

TASK_RETRIES: dict[str, Any] = {
    "retries": MOST_RETRIES,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=5),
}
"""Airflow's side of retries. The number is only the ceiling of MAX_RETRIES; the delays are those of tasks whose process
was killed, which ask no policy."""

LEAST_PAUSE_S = 15.0
"""Shortest pause of a task that waits. Airflow looks after a task's process for up to 5 s after its end; what it then
reports of a task that runs again already fails that try, and costs a retry."""

PLAN_TASK = "plan"
RUN_DIR_KEY = "run_dir"
"""XCom key under which `plan` gives the run directory."""

log = logging.getLogger(__name__)


class BlockedTask(AirflowFailException):
    """A step (or a selection) whose needs are missing: a failure, never a skip."""


class StepFailed(AirflowFailException):
    """A step that no further try can cure."""


class StepRetry(AirflowException):
    """A step that another try may cure."""

    def __init__(self, message: str, limits: RetryLimits) -> None:
        super().__init__(message)
        self.limits = limits


class StepRetryPolicy(RetryPolicy):
    """MAX_RETRIES tries after the first, with RETRY_BACKOFF_BASE doubling up to RETRY_BACKOFF_MAX, 20 % jitter."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Whether and when; runs in the worker. What is no `StepRetry` is a fault of the surroundings.

        It is classed as in a step: no try cures a run directory that holds no plan any more, or a defect.
        """
        from evpack.steps.runner import classify

        if not isinstance(exception, StepRetry) and (exit_ := classify(exception)) not in RETRIED:
            return RetryDecision.fail(f"{exit_.name.lower()}: {exception}")
        limits = exception.limits if isinstance(exception, StepRetry) else limits_of(context)
        used = used_retries(try_number, max_tries)
        if used >= limits.retries:
            return RetryDecision.fail(f"the {limits.retries} retries of MAX_RETRIES are used up")
        pause = limits.pause_s(used, random.SystemRandom().random)
        return RetryDecision.retry(
            timedelta(seconds=pause), f"retry {used + 1} of {limits.retries} in {pause:.0f} s: {exception}"
        )


def used_retries(try_number: int, max_tries: int) -> int:
    """Retries since the task was last started afresh: a clear adds the task's retries to the tries made so far."""
    return max(0, try_number - 1 - (max_tries - MOST_RETRIES))


def failed(error: EvpackError, limits: RetryLimits) -> StepFailed | StepRetry:
    """What a task raises for an error that it met before or beside its step; another try follows where one may help."""
    from evpack.steps.runner import classify

    return StepRetry(error.diagnostics(), limits) if classify(error) in RETRIED else StepFailed(error.diagnostics())


def check_tries(context: Context, limits: RetryLimits, step_id: str) -> None:
    """Refuse a try beyond MAX_RETRIES: tasks that were killed come back without having asked the policy.

    Raises:
        StepFailed: when the tries are used up.
    """
    ti = context["ti"]
    if used_retries(ti.try_number, ti.max_tries) > limits.retries:
        raise StepFailed(f"{step_id}: the {limits.retries} retries of MAX_RETRIES are used up")


def check_lane(task_id: str, plan: CampaignPlan, step_id: str) -> None:
    """Refuse a step whose model has left the task's lane: it would hold more devices than the task has slots.

    Raises:
        StepFailed: naming both lanes.
    """
    lane, now = task_id.partition(".")[0], plan.step(step_id).lane
    if lane != now:
        raise StepFailed(
            f"{step_id} is in lane {now} since a resume moved its model there, this task is one of {lane}; "
            "clear it in the newest run, or resume the campaign again"
        )


def nothing_to_do(context: Context, run: RunDir, plan: CampaignPlan, step_id: str) -> bool:
    """Whether a step is done already, found out without starting its process: what makes a resume quick."""
    from evpack.steps.runner import kept

    try:
        done = kept(run, plan, plan.step(step_id), attempt=context["ti"].try_number, dag_run=context["dag_run"].run_id)
    except Blocked:
        return False  # for the step to tell and to record
    if done is not None:
        log.info("%s is done already (%s)", step_id, done.finished_at)
    return done is not None


def end_task(code: int, step_id: str, run: RunDir, *, lines: Collection[str] = (), memory_killed: bool = False) -> None:
    """Turn the end of a step's process or container into the way its task ends.

    Args:
        code: exit code; ``-n`` or ``128 + n`` when signal n ended it.
        run: the campaign's run directory.
        lines: the end of what this attempt printed, looked at where the code tells nothing.
        memory_killed: whether the kernel or the engine killed for memory meanwhile.

    Raises:
        BlockedTask: when something the step needs is missing.
        AirflowRescheduleException: when it must wait for devices or for room; costs no retry.
        StepRetry: when another try may cure it.
        StepFailed: when no further try can.
    """
    from evpack.runtime.leases import count_failures
    from evpack.runtime.threads import frozen_settings
    from evpack.steps.state import close_dead_attempts, memory_try_left

    if code == StepExit.OK:
        return
    exit_, what = class_of(code, lines, memory_killed=memory_killed)
    if code not in STEP_CODES:
        held = close_dead_attempts(run, step_id, exit_, what)
        if exit_ is StepExit.TRANSIENT and crashed(code, lines):
            count_failures(Home.locate(), held, step_id, frozen_settings(run).worker_max_failures)
    message = f"{step_id}: {exit_.name.lower()} ({what}), see the log above"
    if exit_ in WAITING:
        pause = timedelta(seconds=max(LEAST_PAUSE_S, frozen_settings(run).reschedule_pause))
        log.warning("%s; the task gives its slots back and asks again in %s", message, pause)
        raise AirflowRescheduleException(datetime.now(UTC) + pause)
    if exit_ is StepExit.BLOCKED:
        raise BlockedTask(message)
    if exit_ in NO_MEMORY:
        plan = load_plan(run)
        if not memory_try_left(run, plan, plan.step(step_id)):
            raise StepFailed(
                f"{message}; the batch was halved as often as it may be, "
                "`evpack campaign status` says what a resume would do about it"
            )
    if exit_ in RETRIED:
        raise StepRetry(message, frozen_limits(run))
    raise StepFailed(message)


def frozen_limits(run: RunDir) -> RetryLimits:
    """Those of a planned campaign; the defaults where its settings cannot be read."""
    from evpack.runtime.threads import frozen_settings

    with suppress(EvpackError, OSError):
        return RetryLimits.of(frozen_settings(run))
    return RetryLimits.of(Settings())


def planning_limits(params: Mapping[str, Any]) -> RetryLimits:
    """Those of a campaign that is not planned yet: of the run's params and this process's environment.

    The defaults where these are refused, which planning itself will tell.
    """
    from evpack.catalog.suites import settings_for

    with suppress(EvpackError, OSError):
        return RetryLimits.of(settings_for(params, {}, os.environ, Home.locate()))
    return RetryLimits.of(Settings())


def limits_of(context: Context | None) -> RetryLimits:
    """Those of a task's campaign, as far as it is planned."""
    root = context["ti"].xcom_pull(task_ids=PLAN_TASK, key=RUN_DIR_KEY) if context else None
    if root:
        return frozen_limits(RunDir(Path(str(root))))
    return planning_limits(dict(context["params"]) if context else {})

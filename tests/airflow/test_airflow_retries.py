"""From a step's end to its task's: exceptions, retries by policy, waiting that costs no retry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRescheduleException

from evpack.airflow.endings import (
    LEAST_PAUSE_S,
    BlockedTask,
    StepFailed,
    StepRetry,
    StepRetryPolicy,
    check_lane,
    check_tries,
    end_task,
    failed,
    frozen_limits,
    planning_limits,
    used_retries,
)
from evpack.errors import BadInput, DiskFull, EvidenceError, StepExit, Transient
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.health import health_of
from evpack.plan.model import StepPlan, StepType, load_plan
from evpack.rundir import RunDir
from evpack.runtime.failures import RetryLimits
from evpack.settings import MOST_RETRIES, Settings
from evpack.steps.base import Leased
from evpack.steps.state import Attempt, read_attempts
from tests.plans import model_plan, planned_run

STEP = "m.calibrate"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A planned campaign of one scoring step with a batch of 4."""
    settings = Settings(max_retries=2, reschedule_pause=70, worker_max_failures=2)
    step = StepPlan(id=STEP, type=StepType.CALIBRATE, model="m", lane="cpu_s")
    return planned_run(tmp_path / "run", [step], settings, models=(model_plan(batch=4),))


def out_of_memory(run: RunDir) -> None:
    attempt = Attempt(run, STEP, 1, None)
    attempt.end(StepExit.OUT_OF_MEMORY, "no memory")


def test_every_exit_code_has_its_way_to_end(run: RunDir) -> None:
    end_task(StepExit.OK, STEP, run)
    out_of_memory(run)
    expected = {
        StepExit.BAD_INPUT: StepFailed,
        StepExit.PERMANENT: StepFailed,
        StepExit.DISK: StepFailed,
        StepExit.BLOCKED: BlockedTask,
        StepExit.OUT_OF_MEMORY: StepRetry,
        StepExit.OUT_OF_HOST_MEMORY: StepRetry,
        StepExit.TRANSIENT: StepRetry,
    }
    waits = {StepExit.NO_DEVICE, StepExit.NO_ROOM}
    assert expected.keys() | {StepExit.OK} | waits == set(StepExit)
    for code, error in expected.items():
        with pytest.raises(error, match=code.name.lower()):
            end_task(code, STEP, run)
    for code in waits:
        before = datetime.now(UTC)
        with pytest.raises(AirflowRescheduleException) as waiting:
            end_task(code, STEP, run)
        assert before <= waiting.value.reschedule_date - timedelta(seconds=70) <= datetime.now(UTC)


def test_no_task_comes_back_while_airflow_still_looks_after_its_last_process(tmp_path: Path) -> None:
    hasty = planned_run(tmp_path / "run", [], Settings(reschedule_pause=0.5))
    before = datetime.now(UTC)
    with pytest.raises(AirflowRescheduleException) as waiting:
        end_task(StepExit.NO_DEVICE, STEP, hasty)
    assert waiting.value.reschedule_date - before >= timedelta(seconds=LEAST_PAUSE_S)


def test_a_code_that_no_step_gives_is_told_by_the_output(run: RunDir) -> None:
    with pytest.raises(StepRetry, match="SIGKILL"):
        end_task(-9, STEP, run)
    with pytest.raises(StepFailed, match=r"exit 1.*'ImportError'"):
        end_task(1, STEP, run, lines=["Traceback", "ImportError: no x"])


def test_final_failures_ask_no_policy() -> None:
    assert issubclass(StepFailed, AirflowFailException)
    assert issubclass(BlockedTask, AirflowFailException)
    assert not issubclass(StepRetry, AirflowFailException)


def test_a_killed_attempt_is_written_down_and_halves_the_batch_when_it_was_memory(run: RunDir) -> None:
    attempt = Attempt(run, STEP, 1, None)
    attempt.begin()
    (file,) = run.attempts(STEP).iterdir()
    write_json(file, {**read_attempts(run, STEP)[0], "pid": 2**22 + 1})  # beyond any process
    with pytest.raises(StepRetry, match="out_of_host_memory"):
        end_task(-9, STEP, run, memory_killed=True)
    (record,) = read_attempts(run, STEP)
    assert (record["class"], record["exit"]) == ("out_of_host_memory", StepExit.OUT_OF_HOST_MEMORY)
    assert "SIGKILL" in record["error"]


@pytest.mark.parametrize(
    ("code", "lines", "failures"),
    [(-11, [], 1), (-6, [], 1), (1, ["Timeout (0:02:00)!"], 1), (-9, [], 0), (-15, [], 0), (-6, ["MemoryError"], 0)],
)
def test_a_crash_counts_against_the_devices_of_the_step(
    code: int, lines: list[str], failures: int, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    home = Home.locate()
    for expected in (failures, 2 * failures):
        attempt = Attempt(run, STEP, 1, None)
        attempt.begin_on(Leased(("GPU-0", "GPU-1")))
        for file in run.attempts(STEP).iterdir():
            write_json(file, {**read_json(file), "pid": 2**22 + 1})  # beyond any process
        with pytest.raises(StepRetry):
            end_task(code, STEP, run, lines=lines)
        assert [health_of(home, f"GPU-{number}").failures for number in range(3)] == [expected, expected, 0]
    reason = health_of(home, "GPU-0").quarantined
    assert (reason is not None and "2 failures in a row" in reason) if failures else reason is None


def test_memory_is_retried_twice_and_only_with_a_smaller_batch(run: RunDir) -> None:
    for _ in range(2):
        out_of_memory(run)
        with pytest.raises(StepRetry):
            end_task(StepExit.OUT_OF_MEMORY, STEP, run)
    out_of_memory(run)
    with pytest.raises(StepFailed, match="halved as often"):
        end_task(StepExit.OUT_OF_MEMORY, STEP, run)


def test_a_task_runs_no_step_of_a_lane_that_its_model_left(run: RunDir) -> None:
    plan = load_plan(run)
    check_lane("cpu_s.models.calibrate", plan, STEP)
    with pytest.raises(StepFailed, match=r"is in lane cpu_s .* this task is one of gpu1_s"):
        check_lane("gpu1_s.models.calibrate", plan, STEP)


def test_an_error_beside_a_step_is_retried_where_that_may_help() -> None:
    limits = RetryLimits(5, 1, 2)
    retry = failed(Transient("the hub is away", "later"), limits)
    assert isinstance(retry, StepRetry) and retry.limits is limits
    for error in (BadInput("no pools", "make some"), DiskFull("full"), EvidenceError("half a file")):
        assert isinstance(failed(error, limits), StepFailed) and error.what in str(failed(error, limits))


# --- the policy ------------------------------------------------------------------------------------------------------
def decide(error: BaseException, try_number: int, cleared_at: int = 0) -> Any:
    """As Airflow asks: a clear after n tries raises the highest try number to n and the retries."""
    return StepRetryPolicy().evaluate(error, try_number, cleared_at + MOST_RETRIES)


def test_the_policy_spaces_retries_and_ends_them() -> None:
    error = StepRetry("x", RetryLimits(3, 30, 300))
    for used, middle in enumerate((30, 60, 120)):
        decision = decide(error, used + 1)
        assert decision.action is RetryAction.RETRY
        assert 0.8 * middle <= decision.retry_delay.total_seconds() <= 1.2 * middle
    assert decide(error, 4).action is RetryAction.FAIL


def test_a_cleared_task_starts_afresh() -> None:
    error = StepRetry("x", RetryLimits(1, 30, 300))
    assert decide(error, 2).action is RetryAction.FAIL
    assert decide(error, 3, cleared_at=2).action is RetryAction.RETRY
    assert decide(error, 4, cleared_at=2).action is RetryAction.FAIL
    assert used_retries(3, 2 + MOST_RETRIES) == 0


def test_other_exceptions_are_retried_by_the_defaults_and_no_retries_means_none() -> None:
    assert decide(AirflowException("engine away"), 1).action is RetryAction.RETRY
    assert decide(AirflowException("engine away"), 4).action is RetryAction.FAIL
    assert decide(StepRetry("x", RetryLimits(0, 30, 300)), 1).action is RetryAction.FAIL


@pytest.mark.parametrize(
    "error", [BadInput("holds no plan"), FileNotFoundError("state/settings.json"), TypeError("x"), OSError(28, "full")]
)
def test_what_no_try_cures_is_not_tried_again(error: Exception) -> None:
    decision = decide(error, 1)
    assert decision.action is RetryAction.FAIL and str(error) in str(decision.reason)
    assert decide(Transient("the engine went away"), 1).action is RetryAction.RETRY


def test_tasks_that_were_killed_come_back_no_more_often_than_others(run: RunDir) -> None:
    def context(try_number: int) -> Any:
        return {"ti": SimpleNamespace(try_number=try_number, max_tries=MOST_RETRIES)}

    for try_number in (1, 2, 3):
        check_tries(context(try_number), frozen_limits(run), STEP)
        check_tries(context(try_number), planning_limits({}), "plan")
    with pytest.raises(StepFailed, match="plan: the 3 retries"):
        check_tries(context(5), planning_limits({}), "plan")
    with pytest.raises(StepFailed, match="used up"):
        check_tries(context(4), frozen_limits(run), STEP)


def test_a_fault_beside_a_step_is_retried_as_often_as_the_campaign_says(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def context(root: str | None, **params: Any) -> Any:
        return {"ti": SimpleNamespace(xcom_pull=lambda **_: root), "params": params}

    def allowed(**where: Any) -> int:
        tries = [StepRetryPolicy().evaluate(OSError("engine away"), n, MOST_RETRIES, **where) for n in range(1, 9)]
        return sum(decision.action is RetryAction.RETRY for decision in tries)

    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    assert allowed(context=context(str(run.root), max_retries=7)) == 2  # frozen
    assert allowed(context=context(None, max_retries=7)) == 7  # not planned yet
    monkeypatch.setenv("MAX_RETRIES", "1")
    assert allowed(context=context(None)) == 1
    monkeypatch.setenv("MAX_RETRIES", "many")
    assert allowed(context=context(None)) == allowed(context=context(str(tmp_path))) == allowed() == 3

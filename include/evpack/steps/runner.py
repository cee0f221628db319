"""Runs one step: needs, markers, redo, attempt record, log, exit code. The only way a step is ever run.

Order: read the plan -> needs -> marker (keep or archive) -> work -> marker -> attempt record.
"""

from __future__ import annotations

import errno
import faulthandler
import importlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

from evpack.errors import NEVER_VALID, BadInput, Blocked, BrokenContract, EvpackError, StepExit, lacks_memory
from evpack.files import digest_json, write_json
from evpack.home import Home
from evpack.plan.memory import devices_of
from evpack.plan.model import CLOSING, CampaignPlan, StepPlan, StepType, load_plan
from evpack.plan.model import step_id as make_step_id
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps import state
from evpack.steps.base import Leased, LeaseDevices, StepContext, StepFunction, log
from evpack.steps.pressure import check_pressure
from evpack.steps.timeline import write_timeline
from evpack.steps.variants import is_whole, release, remove_weights, room_for, spent, variant_step

STEP_FUNCTIONS: Mapping[StepType, str] = {
    StepType.SETUP_BASELINE: "evpack.steps.setup_baseline:setup_baseline",
    StepType.CALIBRATE: "evpack.steps.calibrate:calibrate",
    StepType.DERIVE_PRESET: "evpack.steps.derive_preset:derive_preset",
    StepType.CREATE: "evpack.steps.create:create",
    StepType.EVALUATE: "evpack.steps.evaluate:evaluate",
    StepType.COMPILE_VERDICT: "evpack.steps.compile_verdict:compile_verdict_step",
    StepType.BUILD_PACK: "evpack.steps.build_pack:build_pack",
    StepType.VERIFY_PACK: "evpack.steps.verify_pack:verify_pack",
}
"""Where each step type's function is; imported when it runs, so that light steps never import torch."""

ALWAYS_RUN = frozenset(CLOSING)
"""Steps that look at everything on disk: cheap, idempotent by themselves, never skipped because of a marker."""

_PERMANENT = (
    TypeError,
    LookupError,
    AssertionError,
    ImportError,
    SyntaxError,
    FileNotFoundError,
    NotImplementedError,
)
"""Python errors that a second try cannot cure (scheduling spec, section 7)."""

HANG_S = 60
"""Seconds that a step may take to clean up when its time limit is over, or to ask its devices beyond LEASE_WAIT."""

Work = Callable[[StepContext, state.Attempt], list[Path]]
"""Does a step's work and gives what it published, as a step function does; `work_here` does, or a container."""


class Terminated(BaseException):
    """The step was asked to stop (SIGTERM)."""


class TimedOut(BaseException):
    """The step ran longer than its limit."""


def run_step(
    run_dir: Path,
    step_id: str,
    *,
    attempt: int = 1,
    dag_run: str | None = None,
    own_process: bool = False,
    lease: LeaseDevices | None = None,
    work: Work | None = None,
) -> StepExit:
    """Run one step of a planned campaign.

    Args:
        run_dir: the campaign's run directory.
        attempt: try number within the DAG run, from 1.
        dag_run: id of the DAG run that asks; a higher try of the same DAG run redoes a finished step.
        own_process: True in a process that runs nothing else: SIGTERM and the step's time limit then end the step.
        lease: holds the devices of a step that needs some; without it such a step is refused.
        work: does the work somewhere else, with a lease of its own.

    Returns:
        The classified exit code; the error's text is in the attempt record and the log.

    Raises:
        BadInput: when the directory holds no plan or the plan has no such step (nothing is recorded then).
    """
    run = RunDir(run_dir.absolute())
    plan = load_plan(run)
    step = plan.step(step_id)
    settings = Settings.parse(run.settings.read_bytes())
    record = state.Attempt(run, step_id, attempt, dag_run, step.lane)
    state.close_dead_attempts(run, step_id, StepExit.TRANSIENT, "killed: its process is gone")

    def attempt_it() -> None:
        if step.type not in ALWAYS_RUN:
            check_pressure(run, settings)
        batch = state.lowered_batch(run, plan, step)
        ctx = StepContext(run, plan, settings, step, Home.locate(), attempt, batch)
        _finish(ctx, record, work or (lambda ctx, record: work_here(ctx, record.begin_on, lease, own_process)))

    with _logging_to(run.task_log(step_id)):
        record.begin()
        exit_: StepExit = StepExit.TRANSIENT
        error: str | None = "interrupted"
        try:
            exit_, error = attempted(attempt_it, step, own_process=own_process)
        finally:
            record.end(exit_, error)
    return exit_


def write_summaries(run: RunDir, plan: CampaignPlan) -> None:
    """state/progress.json, state/errors.json and analysis/timeline.svg, from markers and attempt records as they are.

    Raises:
        DiskFull: when there is no room for them.
    """
    write_json(run.progress, state.progress(run, plan))
    write_json(run.errors, state.errors(run, plan))
    write_timeline(run, plan)


def attempted(work: Callable[[], None], step: StepPlan, *, own_process: bool) -> tuple[StepExit, str | None]:
    """Do something of a step under its limits; how it ended, and the error's text."""
    try:
        with _limits(step, own_process):
            work()
        return StepExit.OK, None
    except Exception as problem:
        exit_, error = classify(problem), _text(problem)
        log.error("%s: %s", exit_.name.lower(), error)
        if not isinstance(problem, EvpackError):
            log.error("".join(traceback.format_exception(problem)))
        return exit_, error
    except Terminated:
        log.error("terminated")
        return StepExit.TRANSIENT, "terminated from outside"
    except TimedOut:
        error = f"Timeout: task exceeded its limit of {step.timeout_s} s"
        log.error("%s", error)
        return StepExit.TRANSIENT, error


def _finish(ctx: StepContext, record: state.Attempt, work: Work) -> None:
    """Do the step's work unless a valid marker says it is done."""
    dag_run = record.dag_run
    inputs = input_digest(ctx.run, ctx.plan, ctx.step)
    if (done := kept(ctx.run, ctx.plan, ctx.step, attempt=ctx.attempt, dag_run=dag_run)) is not None:
        log.info("%s is done already (%s)", ctx.step.id, done.finished_at)
        return
    marker = None if ctx.step.type in ALWAYS_RUN else state.read_marker(ctx.run, ctx.step.id)
    skipped = _skipped(ctx)
    creates = ctx.step.type is StepType.CREATE and skipped is None
    with room_for(ctx.run, ctx.plan, ctx.step) if creates else nullcontext():
        if marker is not None:
            _set_aside(ctx, marker)
        if skipped is not None:
            log.info("%s: nothing to do, %s", ctx.step.id, skipped)
        elif ctx.step.type is StepType.EVALUATE:
            _have_variant(ctx, record, work)
            inputs = input_digest(ctx.run, ctx.plan, ctx.step)
        published = [] if skipped is not None else work(ctx, record)
        if not published and skipped is None:
            raise BrokenContract(f"step {ctx.step.id} finished without publishing anything")
        state.write_marker(
            ctx.run, ctx.step, input_digest=inputs, published=published, dag_run=dag_run, attempt=ctx.attempt
        )
    if ctx.step.type is StepType.EVALUATE and not ctx.settings.keep_variants:
        release(ctx.run, ctx.plan, ctx.step)
    log.info("%s done", ctx.step.id)


def kept(run: RunDir, plan: CampaignPlan, step: StepPlan, *, attempt: int, dag_run: str | None) -> state.Marker | None:
    """The marker of a step that has nothing to do: done, from what there is now, and not asked for again.

    Raises:
        Blocked: when something the step needs was not produced.
    """
    if step.type in ALWAYS_RUN:
        return None
    inputs, marker = input_digest(run, plan, step), state.read_marker(run, step.id)
    if marker is None or marker.input_digest != inputs:
        return None
    if dag_run is not None and marker.dag_run == dag_run and attempt > marker.attempt:
        return None
    return marker if marker.intact(run) or _evaluated(run, plan, step, marker) else None


def _set_aside(ctx: StepContext, marker: state.Marker) -> None:
    """Make way for a redo. A used-up variant keeps its marker until the next is there; weights go."""
    if ctx.step.type is StepType.CREATE and spent(ctx.run, marker):
        log.info("%s: the removed variant is made again", ctx.step.id)
        return
    log.info("%s is redone; old results move to archive/", ctx.step.id)
    if ctx.step.type is StepType.CREATE and not ctx.settings.keep_variants:
        remove_weights(ctx.run, marker)
    state.archive_outputs(ctx.run, marker)


def _evaluated(run: RunDir, plan: CampaignPlan, create: StepPlan, marker: state.Marker) -> bool:
    """Whether a create step's weights are gone because its evaluation is done, as things stand."""
    if create.type is not StepType.CREATE or not spent(run, marker):
        return False
    evaluate = plan.step(make_step_id(StepType.EVALUATE, create.model, create.scenario))
    done = state.read_marker(run, evaluate.id)
    try:
        inputs = input_digest(run, plan, evaluate)
    except Blocked:
        return False
    return done is not None and done.input_digest == inputs and done.intact(run)


def _have_variant(ctx: StepContext, record: state.Attempt, work: Work) -> None:
    """Make the variant of an evaluation again where it was removed."""
    create = variant_step(ctx.plan, ctx.step)
    if is_whole(ctx.run, create.id):
        return
    again = state.Attempt(ctx.run, create.id, record.number, record.dag_run, create.lane)
    again.begin()
    exit_, error = StepExit.TRANSIENT, "interrupted"
    try:
        _finish(replace(ctx, step=create, batch=None), again, work)
        exit_, error = StepExit.OK, ""
    except Exception as problem:
        exit_, error = classify(problem), _text(problem)
        raise
    finally:
        again.end(exit_, error or None)


def work_here(
    ctx: StepContext, note: Callable[[Leased], None], lease: LeaseDevices | None, own_process: bool
) -> list[Path]:
    """The step function's work in this process, on the devices the plan gives the step; what it published.

    Args:
        note: told the devices once they are held; the step's time limit stands still while it waits for them.
        own_process: as for `run_step`.

    Raises:
        BrokenContract: when it needs devices and nobody leases any.
    """
    count = devices_of(ctx.plan, ctx.step)
    if count == 0:
        return _function(ctx.step.type)(ctx)
    if lease is None:
        raise BrokenContract(f"step {ctx.step.id} needs {count} devices, and whoever runs it leases none")
    left = _run_clock(0)
    if own_process:  # a sick device may never answer who asks for it, and hold up all that ask after
        _end_after(ctx.settings.lease_wait + HANG_S)
    with lease(ctx, count) as leased:
        _run_clock(left)
        note(leased)
        return _function(ctx.step.type)(replace(ctx, leased=leased))


def _skipped(ctx: StepContext) -> str | None:
    """Why a step makes nothing: its resolved edit is skipped, or no pack is wanted; None when there is work.

    The step succeeds, so that nothing behind it is blocked; the verdict still lacks a skipped edit's evidence.
    """
    step = ctx.step
    if step.type in (StepType.BUILD_PACK, StepType.VERIFY_PACK):
        return None if ctx.settings.build_pack else "PACK_BUILD is off"
    if step.type not in (StepType.CREATE, StepType.EVALUATE):
        return None
    edit = ctx.plan.step(make_step_id(StepType.CREATE, step.model, step.scenario)).edit
    return f"the tuned parameters skip its edit: {edit.reason}" if edit and edit.status == "skipped" else None


def input_digest(run: RunDir, plan: CampaignPlan, step: StepPlan) -> str:
    """Digest of all a step depends on: itself as it was planned (whatever its lane is now), the frozen settings, what
    its needs made.

    Raises:
        Blocked: naming the needs that were not produced.
    """
    needs: dict[str, str] = {}
    missing = []
    for need in step.needs:
        marker = state.read_marker(run, need)
        if marker is None:
            missing.append(need)
        else:
            needs[need] = marker.outputs_digest()
    if missing:
        raise Blocked(
            f"step {step.id} needs {', '.join(missing)}, which did not finish", "mend the earlier failure, then resume"
        )
    planned = plan.as_planned().step(step.id)
    return digest_json({"step": planned.model_dump(mode="json"), "settings": plan.settings_digest, "needs": needs})


def classify(problem: BaseException) -> StepExit:
    """The exit code of an exception (scheduling spec, section 7: by type and words, never by searching old logs)."""
    if isinstance(problem, EvpackError):
        return StepExit(problem.exit_code)
    if (lacking := lacks_memory(problem)) is not None:
        return lacking
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StepExit.DISK
    never = isinstance(problem, ValueError) and re.search(NEVER_VALID, str(problem)) is not None
    return StepExit.PERMANENT if never or isinstance(problem, _PERMANENT) else StepExit.TRANSIENT


def _text(problem: BaseException) -> str:
    return str(problem) if isinstance(problem, EvpackError) else f"{type(problem).__name__}: {problem}"


def _function(type_: StepType) -> StepFunction:
    module, _, name = STEP_FUNCTIONS[type_].partition(":")
    function: StepFunction = getattr(importlib.import_module(module), name)
    return function


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send this package's log to the step's own log file; the caller's handlers stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("evpack")
    previous = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(previous)
        handler.close()


@contextmanager
def _limits(step: StepPlan, own_process: bool) -> Iterator[None]:
    """Turn SIGTERM and the step's time limit into exceptions, so that temporary directories are cleaned up.

    The first of them counts. What comes while the step cleans up or writes its end must not break that; SIGKILL ends
    what does not come to an end.
    """
    if not own_process:
        with time_limit(step.timeout_s or 0) if step.type in ALWAYS_RUN else nullcontext():
            yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else TimedOut

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    _run_clock(step.timeout_s or 0)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _run_clock(0)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A time limit in a process that is somebody else's: Airflow's worker, for what it does itself. 0: none.

    Raises:
        TimedOut: when it is over.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimedOut

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _run_clock(seconds: int) -> int:
    """Let a step's time limit run, 0: let it stand still. The seconds that were left.

    Python looks at the signal between two of its own instructions, so a step that hangs within a library, on an
    accelerator for one, would never end by it: `HANG_S` later the process ends itself, without Python.
    """
    left = signal.alarm(seconds)
    if seconds:
        _end_after(seconds + HANG_S)
    else:
        faulthandler.cancel_dump_traceback_later()
    return left


def _end_after(seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)


def in_own_process(attempt: Callable[[], StepExit]) -> int:
    """`evpack step`: attempt a step in this process, its log on standard output. It sees no device but those it leases.

    Returns:
        The exit code.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return int(attempt())
    except BadInput as error:
        print(f"evpack: {error.diagnostics()}", file=sys.stderr)
        return int(StepExit.BAD_INPUT)
    except OSError as error:  # reading the plan or keeping records: a full disk or a lost mount is no bad input
        if isinstance(error, PermissionError):
            raise
        print(f"evpack: {_text(error)}", file=sys.stderr)
        return int(classify(error))


def main_step(run_dir: Path, step_id: str, attempt: int, dag_run: str | None, lease: LeaseDevices | None = None) -> int:
    """`evpack step` with all its books: `run_step` in this process; its exit code.

    No gate follows a closing step that is run by hand, so the summaries are written here.
    """

    def attempt_it() -> StepExit:
        exit_ = run_step(run_dir, step_id, attempt=attempt, dag_run=dag_run, own_process=True, lease=lease)
        if step_id in ALWAYS_RUN:
            run = RunDir(run_dir.absolute())
            write_summaries(run, load_plan(run))
        return exit_

    return in_own_process(attempt_it)

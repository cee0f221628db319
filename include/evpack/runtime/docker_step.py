"""The work of a step in a container: what the runner calls in place of doing it in its own process."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evpack.errors import EvidenceError, EvpackError, IntegrityError, StepExit
from evpack.plan.health import health_of
from evpack.plan.model import StepType
from evpack.plan.sources import hub_cache
from evpack.runtime.docker_engine import Ended, RunningContainer, ours, reap, remove
from evpack.runtime.docker_spec import (
    ContainerLimits,
    make_for,
    published_places,
    source_places,
    step_container,
)
from evpack.runtime.failures import Output, class_of, crashed
from evpack.runtime.leases import count_failures, known_devices, tell_quarantine
from evpack.runtime.threads import threads_for
from evpack.steps.base import StepContext, log
from evpack.steps.remote import RESULT_FILE, Result, fetch
from evpack.steps.runner import HANG_S, time_limit
from evpack.steps.state import Attempt

if TYPE_CHECKING:
    from docker import APIClient


class FailedElsewhere(EvpackError):
    """The work failed in its container; carries the class it ended with."""

    def __init__(self, exit_: StepExit, what: str) -> None:
        super().__init__(what)
        self.exit_code = exit_


class ContainerWork:
    """Does the work of a task in containers, one step at a time; once it is stopped it starts none."""

    def __init__(self, engine: Callable[[], tuple[APIClient, ContainerLimits]], labels: Mapping[str, str]) -> None:
        """Nothing is asked of the engine yet.

        Args:
            engine: gives it and the deployment's limits; called in the books of each step, which tell its failure.
            labels: say where the task stands in Airflow.
        """
        self._engine = engine
        self._labels = dict(labels)
        self._container: RunningContainer | None = None
        self._stopped = False

    def __call__(self, ctx: StepContext, record: Attempt) -> list[Path]:
        """Run the step's container; what it published, when that is what the step may publish.

        Raises:
            FailedElsewhere: when the work failed, with its class.
            TimedOut: when what it needs is not fetched within the step's limit, or its container does not end.
            BadInput, Transient: when the engine is not there or does not run it.
            EvidenceError: when it left no readable result.
        """
        client, limits = self._engine()
        _make_way(client, ctx)
        texts: tuple[Path, ...] = ()
        if ctx.step.type is StepType.SETUP_BASELINE:
            with time_limit(ctx.step.timeout_s or 0):
                texts = fetch(ctx)
        with _outbox(ctx) as outbox:
            spec = step_container(
                ctx.run,
                ctx.plan,
                ctx.step,
                ctx.settings,
                ctx.home,
                limits=limits,
                command=_command(ctx, outbox),
                texts=texts,
                threads=threads_for(ctx.plan, ctx.step),
                labels=self._labels,
            )
            output = Output(log)
            before = _quarantined_by(ctx)
            self._container = RunningContainer(client, spec)
            if self._stopped:
                raise FailedElsewhere(StepExit.TRANSIENT, "stopped before its container was made")
            try:
                with time_limit(_longest(ctx)):
                    ended = self._container.run(output)
            finally:
                for device, reason in _quarantined_by(ctx).items() - before.items():
                    tell_quarantine(ctx.home, device, reason)
            result = _result(outbox, ctx.step.id)
        if result is not None:
            record.was_elsewhere(result.leased, result.peak_rss_bytes)
        if ended.code != StepExit.OK:
            failure = _failure(ended, result, output.last)
            if failure.exit_code == StepExit.TRANSIENT and crashed(ended.code, output.last):
                held = result.leased.devices if result and result.leased else ()
                count_failures(ctx.home, held, ctx.step.id, ctx.settings.worker_max_failures)
            raise failure
        if result is None:
            raise EvidenceError(f"the container of {ctx.step.id} ended well and left no result")
        return _checked(ctx, result)

    def stop(self) -> None:
        """End the container that runs, and start none from now on; called at any moment, also from a signal handler."""
        self._stopped = True
        if self._container is not None:
            self._container.stop()


def _make_way(client: APIClient, ctx: StepContext) -> None:
    """No container of an earlier attempt computes beside this one, whoever looks after it."""
    for line in reap(client, ctx.home):
        log.warning("removed %s: nobody looks after it", line)
    for container in ours(client, ctx.home, run_dir=str(ctx.run.root), step=ctx.step.id):
        log.warning("removed container %s of an earlier attempt", container["Id"][:12])
        remove(client, container["Id"])


def _quarantined_by(ctx: StepContext) -> dict[str, str]:
    """Devices that a step had quarantined, and why: its container could tell nobody, EVPACK_HOME is not in there."""
    found = ((device, health_of(ctx.home, device)) for device in known_devices(ctx.home))
    return {device: health.quarantined for device, health in found if health.quarantined and health.step == ctx.step.id}


def _longest(ctx: StepContext) -> int:
    """Seconds after which a container counts as hung: it keeps the step's limit itself, as long as it runs at all."""
    limit = ctx.step.timeout_s
    return 0 if not limit else limit + round(ctx.settings.lease_wait) + 2 * HANG_S


def _command(ctx: StepContext, outbox: Path) -> list[str]:
    command = ["step", str(ctx.run.root), ctx.step.id, "--try", str(ctx.attempt), "--outbox", str(outbox)]
    return command if ctx.batch is None else [*command, "--batch", str(ctx.batch)]


@contextmanager
def _outbox(ctx: StepContext) -> Iterator[Path]:
    """A directory for the result; below the step's archive, which is left as it was when nothing else went there."""
    outbox = ctx.run.archive / ctx.step.id / f"outbox-{uuid.uuid4().hex}"
    make_for(ctx.run.root.stat(), outbox)
    try:
        yield outbox
    finally:
        shutil.rmtree(outbox, ignore_errors=True)
        with suppress(OSError):  # not empty
            outbox.parent.rmdir()


def _result(outbox: Path, step: str) -> Result | None:
    """The result in an outbox; whatever else than a file bears its name is no result."""
    file = outbox / RESULT_FILE
    if outbox.is_symlink() or file.is_symlink() or not file.is_file():
        return None
    return Result.read(file, step)


def _failure(ended: Ended, result: Result | None, lines: Iterable[str]) -> FailedElsewhere:
    exit_, what = class_of(ended.code, lines, memory_killed=ended.memory_killed)
    return FailedElsewhere(exit_, (result and result.error) or f"the container ended: {what}")


def _checked(ctx: StepContext, result: Result) -> list[Path]:
    """The published paths, each where the step may publish and made of nothing but files and directories.

    A baseline may link to its model's source, where it was brought from.
    """
    places = published_places(ctx.run, ctx.plan, ctx.step, ctx.settings)
    paths = [ctx.run.root / name for name in result.published]
    for path in paths:
        if ".." in path.parts or not any(path.is_relative_to(place) for place in places):
            raise IntegrityError(f"step {ctx.step.id} says it published {path}, which is none of its places")
        if linked := ctx.run.first_link(path):
            raise IntegrityError(f"step {ctx.step.id} published {path} behind a link: {linked}")
        for item in [path, *path.rglob("*")] if path.is_dir() else [path]:
            if item.is_symlink() and not _links_to_source(ctx, item):
                raise IntegrityError(f"step {ctx.step.id} published a link: {item}")
            if not (item.is_file() or item.is_dir()):
                raise IntegrityError(f"step {ctx.step.id} published {item}, which is no file")
    return paths


def _links_to_source(ctx: StepContext, item: Path) -> bool:
    if ctx.step.type is not StepType.SETUP_BASELINE or item.parent != ctx.run.model(ctx.step.model or "").baseline:
        return False
    places = [*source_places(ctx.plan, ctx.step, ctx.home), hub_cache(ctx.settings, ctx.home)]
    return any(item.resolve().is_relative_to(place.resolve()) for place in places)

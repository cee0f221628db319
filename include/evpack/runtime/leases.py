"""Device leases: which accelerators a step holds, by advisory locks on files in EVPACK_HOME/leases.

The process that computes holds one lock per device and the kernel drops it when that process dies, whatever happened to
Airflow or a container engine. A step gets all its devices at once or none: claims follow one after the other under
a lock of their own, so two claims never hold half of what the other needs. Files, by UUID: ``<uuid>.lock`` (locked
while in use; its text names the holder, for people) and ``<uuid>.json`` (failures in a row, quarantine).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from evpack.errors import BadInput, BrokenContract, DeviceFault, EvpackError, NoDevice, StepExit
from evpack.files import utc_now
from evpack.home import Home
from evpack.plan.health import Health, health_of, record_file, remember
from evpack.plan.nvml import DeviceFacts, in_pool
from evpack.rundir import checked_id, is_id
from evpack.runtime.gpu import Demand, cached_devices, facts_file, never, not_now
from evpack.runtime.notify import notify
from evpack.settings import Settings
from evpack.steps.base import Leased, StepContext, log
from evpack.steps.runner import TimedOut, classify
from evpack.steps.state import read_attempts

POLL_S = 0.5
"""Seconds between two claims of one waiting step."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

_BROKEN = re.compile(
    r"uncorrectable ECC|\bXid\b|GPU is lost|fallen off the bus"
    r"|CUDA (driver )?initialization|CUDA unknown error|No CUDA GPUs are available",
    re.IGNORECASE,
)
"""Words of torch and the driver after which a device cannot be trusted: Xid or ECC, failed initialisation."""
_STRAYED = re.compile(
    r"device-side assert|vectorized_gather_kernel|illegal (memory access|instruction)|misaligned address"
    r"|hardware stack error|unspecified launch failure",
    re.IGNORECASE,
)
"""Words after which it cannot either, though the step may be the cause: then it fails so on the next device, too."""


def quarantine(home: Home, uuid: str, reason: str, failures: int = 0, *, step: str | None = None) -> None:
    """Give a device to no step until somebody releases it.

    Args:
        failures: steps in a row that failed on it.
        step: the one that saw it.
    """
    log.error("device %s is quarantined: %s (`evpack devices release %s` when it is mended)", uuid, reason, uuid)
    remember(home, uuid, Health(failures, reason, utc_now(), step))
    tell_quarantine(home, uuid, reason)


def tell_quarantine(home: Home, uuid: str, reason: str) -> None:
    """Let the operator know; also for a container, which cannot (`runtime.docker_step`)."""
    notify(home, "device_quarantined", f"{uuid}: {reason}")


def count_failures(home: Home, uuids: Sequence[str], step: str, limit: int) -> None:
    """Note that a step failed on its devices without another explanation.

    Args:
        limit: failures in a row that quarantine a device (WORKER_MAX_FAILURES).
    """
    for uuid in uuids:
        health = health_of(home, uuid)
        failures = health.failures + 1
        if health.quarantined:
            continue
        if failures < limit:
            remember(home, uuid, Health(failures))
            continue
        reason = f"{failures} failures in a row (WORKER_MAX_FAILURES={limit}), last in step {step}"
        quarantine(home, uuid, reason, failures, step=step)


def release(home: Home, uuid: str) -> Health:
    """End a quarantine and forget failures.

    Returns:
        What was remembered.

    Raises:
        BadInput: when nothing is known about the device.
    """
    path = record_file(home, uuid)
    if not os.path.lexists(path):
        raise BadInput(f"device {uuid} is not quarantined", "`evpack devices list` shows the devices of this host")
    with _claiming(home):
        was = health_of(home, uuid)
        path.unlink(missing_ok=True)
    return was


def known_devices(home: Home) -> list[str]:
    """UUIDs about which something is remembered."""
    found = (path.stem for path in home.leases.glob("*.json") if path != facts_file(home))
    return sorted(name for name in found if is_id(name))


def holder(home: Home, uuid: str) -> dict[str, Any] | None:
    """Who holds a device (step, pid, since), None when it is free."""
    with _claiming(home), ExitStack() as locks:
        path = _lock_file(home, uuid)
        if not path.is_file() or _lock(path, locks) is not None:
            return None
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}


@contextmanager
def lease_devices(ctx: StepContext, count: int) -> Iterator[Leased]:
    """Hold the devices of a step while the block runs; only they are visible to CUDA.

    Waits up to LEASE_WAIT seconds. What the block raises decides what is remembered about the devices.

    Args:
        count: devices the plan gives the step's model.

    Raises:
        NoDevice: when not all devices became free in time.
        EvpackError: when the pool, without quarantined devices, can never give as many; when the block failed as the
            step had on other devices before, in the same DAG run.
        BrokenContract: when CUDA runs in this process already, so that it would not see the choice.
    """
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise BrokenContract("CUDA was initialised before the step's devices were leased")
    found = cached_devices(ctx.home, ctx.settings.gpu_cache_ttl)
    demand = Demand.of(ctx.plan.model(ctx.step.model or ""), ctx.settings, len(found))
    started = time.monotonic()
    with ExitStack() as locks:
        devices = _wait(ctx, demand, locks)
        uuids = tuple(device.uuid for device in devices)
        simulated = any(device.simulated for device in devices)
        leased = Leased(uuids, simulated, round(time.monotonic() - started, 3))
        log.info("devices %s%s", ", ".join(uuids), " (pretended: computing on the CPU)" if simulated else "")
        with _visible("" if simulated else ",".join(uuids)):
            try:
                yield leased
            except BaseException as problem:
                own = None
                try:
                    own = _own_fault(ctx, uuids, problem)
                    if own is None:
                        _remember_failure(ctx, uuids, problem)
                except Exception as trouble:  # must not hide what happened
                    log.warning("what happened to %s could not be noted: %s", ", ".join(uuids), trouble)
                if own is not None:
                    raise own from problem
                raise
            for uuid in uuids:
                if (health := health_of(ctx.home, uuid)).failures and health.quarantined is None:
                    remember(ctx.home, uuid, Health())


def claim(
    home: Home, settings: Settings, demand: Demand, locks: ExitStack, who: str, *, last: bool = False
) -> tuple[list[DeviceFacts], list[str]]:
    """Take all devices of a demand or none, without waiting: those with the fewest failures in a row first.

    What devices said up to GPU_CACHE_TTL seconds ago is enough to refuse; to take them they are asked anew.

    Args:
        locks: receives the locks; closing it gives the devices back.
        who: written into the lock files, for people.
        last: whether nobody asks again soon; then devices are asked anew to refuse them, too.

    Returns:
        The devices, or none of them and why each device of the pool was not taken.

    Raises:
        EvpackError: when the pool can never give as many.
    """
    with _claiming(home):
        if settings.gpu_cache_ttl and not last:
            with ExitStack() as attempt:
                devices, refused = _take(home, settings, demand, attempt, who, settings.gpu_cache_ttl)
            if not devices:
                return [], refused
        with ExitStack() as attempt:
            devices, refused = _take(home, settings, demand, attempt, who, 0.0)
            if devices:
                locks.push(attempt.pop_all())
            return devices, refused


def _take(
    home: Home, settings: Settings, demand: Demand, locks: ExitStack, who: str, max_age_s: float
) -> tuple[list[DeviceFacts], list[str]]:
    """`claim`, by what devices said up to so many seconds ago."""
    taken: list[DeviceFacts] = []
    refused: list[str] = []
    for device in _usable(home, in_pool(cached_devices(home, max_age_s), settings), demand, who):
        why = not_now(device, demand)
        handle = None if why else _lock(_lock_file(home, device.uuid), locks)
        if handle is None:
            refused.append(f"{device.uuid}: {why or 'leased'}")
            continue
        _sign(handle, who)
        taken.append(device)
        if len(taken) == demand.count:
            return taken, []
    return [], refused


def _usable(home: Home, pool: Sequence[DeviceFacts], demand: Demand, who: str) -> list[DeviceFacts]:
    """The devices of the pool that may ever serve; a device that says it is broken is quarantined here.

    A sick one may fail every step without a word that tells it: what failed on it must not get it again at once.
    """
    usable: list[DeviceFacts] = []
    refused, failures = [], {}
    for device in pool:
        health = health_of(home, device.uuid)
        why = health.quarantined
        if why is None and device.fault is not None:
            quarantine(home, device.uuid, device.fault, step=who)
            why = device.fault
        why = f"quarantined ({why})" if why else never(device, demand)
        if why is None:
            usable.append(device)
            failures[device.uuid] = health.failures
        else:
            refused.append(f"{device.uuid}: {why}")
    if len(usable) < demand.count:
        raise EvpackError(
            f"{demand.count} devices are needed, {len(usable)} of {len(pool)} in the pool can serve"
            + "".join(f"; {line}" for line in refused),
            "release a mended device (`evpack devices`), lower GPU_MIN_FREE_GB, or plan again for this host",
        )
    return sorted(usable, key=lambda device: failures[device.uuid])


def _wait(ctx: StepContext, demand: Demand, locks: ExitStack) -> list[DeviceFacts]:
    deadline = time.monotonic() + ctx.settings.lease_wait
    told = False
    while True:
        last = time.monotonic() >= deadline
        devices, refused = claim(ctx.home, ctx.settings, demand, locks, ctx.step.id, last=last)
        if devices:
            return devices
        if last:
            raise NoDevice(
                f"{demand.count} devices did not become free within LEASE_WAIT={ctx.settings.lease_wait:g} s: "
                + "; ".join(refused),
                "nothing where they will be given back (`evpack devices`): the step is tried again; else plan anew "
                "with GPU_REQUIRE_IDLE=0, a lower GPU_MIN_FREE_GB or other devices",
            )
        if not told:
            told = True
            log.info("waiting for %d devices: %s", demand.count, "; ".join(refused))
        time.sleep(POLL_S)


def _own_fault(ctx: StepContext, uuids: Sequence[str], problem: BaseException) -> EvpackError | None:
    """What a step fails by that failed in this way on other devices already; None when these may be the cause."""
    if not (isinstance(problem, RuntimeError) and _STRAYED.search(str(problem))):
        return None
    records = read_attempts(ctx.run, ctx.step.id)
    now = {record["dag_run"] for record in records if record["class"] == "running"}
    for record in records:
        before = (record.get("leased") or {}).get("devices", ())
        alike = record["dag_run"] in now and _STRAYED.search(record["error"] or "") is not None
        kept = all(health_of(ctx.home, uuid).quarantined for uuid in before)  # nobody mended and released one since
        elsewhere = before and kept and set(uuids).isdisjoint(before)
        if alike and elsewhere and not any(map(_faults(ctx.home).get, uuids)):
            return EvpackError(
                f"{_reason(problem)} on {', '.join(uuids)}, as on {', '.join(before)} before: the cause is step "
                f"{ctx.step.id}, not a device",
                f"mend its model or text; `evpack devices release {before[0]}` gives that device back",
            )
    return None


def _remember_failure(ctx: StepContext, uuids: Sequence[str], problem: BaseException) -> None:
    """Quarantine what broke, count what may have; input, memory, disk and a stop from outside say nothing."""
    broken = isinstance(problem, DeviceFault) or (
        isinstance(problem, RuntimeError) and any(words.search(str(problem)) for words in (_BROKEN, _STRAYED))
    )
    faults = _faults(ctx.home)
    suspect = isinstance(problem, TimedOut) or (
        isinstance(problem, Exception) and classify(problem) is StepExit.TRANSIENT
    )
    for uuid in uuids:
        health = health_of(ctx.home, uuid)
        if health.quarantined:  # by who claimed devices meanwhile
            continue
        if broken or faults.get(uuid):
            reason = f"{faults.get(uuid) or _reason(problem)} (step {ctx.step.id})"
            quarantine(ctx.home, uuid, reason, health.failures + 1, step=ctx.step.id)
        elif suspect:
            count_failures(ctx.home, [uuid], ctx.step.id, ctx.settings.worker_max_failures)


def _reason(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _faults(home: Home) -> dict[str, str | None]:
    """What devices say is broken now; nothing where they cannot be asked."""
    try:
        return {device.uuid: device.fault for device in cached_devices(home, 0.0)}
    except Exception as trouble:
        log.warning("the devices cannot be asked what is broken: %s", trouble)
        return {}


@contextmanager
def _visible(value: str) -> Iterator[None]:
    """Show CUDA these devices; it reads the variable once, when torch first asks for a device."""
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


@contextmanager
def _claiming(home: Home) -> Iterator[None]:
    """One claim at a time on this host."""
    home.leases.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        _lock(home.leases / "claim.lock", locks, wait=True)
        yield


def _lock(path: Path, locks: ExitStack, *, wait: bool = False) -> int | None:
    """An open file that is locked until `locks` is closed; None when another process has it.

    Containers write in this directory too: a link among the locks is refused, not followed.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    locks.callback(os.close, handle)
    return handle


def _sign(handle: int, who: str) -> None:
    """Say in a lock file who holds it."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"step": who, "pid": os.getpid(), "since": utc_now()}).encode(), 0)


def _lock_file(home: Home, uuid: str) -> Path:
    return home.leases / f"{checked_id(uuid, 'device UUID')}.lock"

"""Lanes: static groups of the DAG for models that need the same number of devices and are of one size class.

The list is a constant because Airflow takes `pool`, `pool_slots` and `queue` from the DAG file, never from a mapped
instance (docs/decisions/0001). Lanes without models are skipped. A deployment of several hosts has the list once for
each (`plan.hosts`): a host's pools and queue bear its name, and so do its lanes, ``gpu1_m-alpha``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evpack.errors import BadInput
from evpack.plan.hosts import Host

CPU_POOL = "cpu"
GPU_POOL = "gpu"
"""Airflow's pools: slots are steps at once on the processor, and devices."""

DEVICE_COUNTS = (0, 1, 2, 4, 8)
"""Accelerators a lane's steps hold; a model that needs 3 takes 4."""

MAX_MAP_LENGTH = 20_000
"""Longest list a mapped group may be expanded over (Airflow's default is 1,024); `plan.order` has wider bands."""

SIZE_CLASSES: tuple[tuple[str, float], ...] = (("s", 30.0), ("m", 70.0), ("l", 100.0), ("x", float("inf")))
"""Class and the weights (GB) it stays below: the reference's size boosts (scheduling spec, section 3)."""


@dataclass(frozen=True)
class Lane:
    """One lane."""

    id: str
    """``cpu_s``, ``gpu1_m``, ``gpu8_x`` ..."""
    devices: int
    size_class: str
    pool: str
    """Of the steps that score: `CPU_POOL` or `GPU_POOL`."""
    pool_slots: int
    cpu_pool: str
    """Of all other steps."""
    host: str | None = None
    """Whose lane it is, and the queue of its tasks; None where there is one host."""

    def on(self, host: str | None) -> Lane:
        """The same lane of a host."""
        named = [pool_of(name, host) for name in (self.id, self.pool, self.cpu_pool)]
        return replace(self, id=named[0], pool=named[1], cpu_pool=named[2], host=host)


def pool_of(pool: str, host: str | None) -> str:
    """The name of a host's pool (or lane); the plain one where there is one host."""
    return pool if host is None else f"{pool}-{host}"


def _lane(devices: int, size_class: str) -> Lane:
    pool = GPU_POOL if devices else CPU_POOL
    return Lane(f"{pool}{devices or ''}_{size_class}", devices, size_class, pool, max(devices, 1), CPU_POOL)


LANES = tuple(_lane(devices, name) for name, _ in SIZE_CLASSES for devices in DEVICE_COUNTS)
"""All lanes of a host, small first: by size class, then by device count."""

_BY_ID = {lane.id: lane for lane in LANES}


def lanes_of(hosts: Sequence[Host]) -> tuple[Lane, ...]:
    """The lanes of a deployment: `LANES`, or those of each of its hosts with the devices that it has."""
    if not hosts:
        return LANES
    return tuple(lane.on(host.name) for host in hosts for lane in LANES if lane.devices <= host.devices)


def plain_id(lane_id: str) -> str:
    """The id of a lane without its host."""
    return lane_id.partition("-")[0]


def host_of(lane_id: str | None) -> str | None:
    """The host of a lane; None where there is one host, and for steps of no lane."""
    return (lane_id or "").partition("-")[2] or None


def lane_named(lane_id: str) -> Lane | None:
    """The lane with an id, of whichever host; None when no lane has it."""
    plain = _BY_ID.get(plain_id(lane_id))
    return None if plain is None else plain.on(host_of(lane_id))


def next_lane(lane_id: str, devices: int) -> Lane | None:
    """The lane of the same host and size class with the next larger device count, None where there is none.

    A lane on the processor has none: devices are no cure for a lack of the host's memory.

    Args:
        devices: accelerators that the host gives.
    """
    here = lane_named(lane_id)
    if here is None or here.devices == 0:
        return None
    larger = (lane for lane in LANES if lane.size_class == here.size_class and lane.devices > here.devices)
    return next((lane.on(here.host) for lane in larger if lane.devices <= devices), None)


def lane_of(devices: int, weights_gb: float, host: str | None = None) -> Lane:
    """The lane of a model that needs at least this many devices of a host.

    Raises:
        BadInput: when no lane has as many devices.
    """
    size_class = next(name for name, below in SIZE_CLASSES if weights_gb < below)
    for lane in LANES:
        if lane.size_class == size_class and lane.devices >= devices:
            return lane.on(host)
    raise BadInput(
        f"a model of {weights_gb:.1f} GB needs {devices} devices; lanes have at most {DEVICE_COUNTS[-1]}",
        "use devices with more memory (GPU_MEMORY_PER_DEVICE) or a smaller model",
    )

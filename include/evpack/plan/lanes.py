"""Lanes: static groups of the DAG for models that need the same number of devices and are of one size class.

The list is a constant because Airflow takes `pool` and `pool_slots` from the DAG file, never from a mapped instance
(docs/decisions/0001). Lanes without models are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from evpack.errors import BadInput

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
    """``cpu`` or ``gpu``."""
    pool_slots: int


def _lane(devices: int, size_class: str) -> Lane:
    pool = "gpu" if devices else "cpu"
    return Lane(f"{pool}{devices or ''}_{size_class}", devices, size_class, pool, max(devices, 1))


LANES = tuple(_lane(devices, name) for name, _ in SIZE_CLASSES for devices in DEVICE_COUNTS)
"""All lanes, small first: by size class, then by device count."""


def next_lane(lane_id: str, devices: int) -> Lane | None:
    """The lane of the same size class with the next larger device count, None where so many devices have none.

    A lane on the processor has none: devices are no cure for a lack of the host's memory.

    Args:
        devices: accelerators that the host gives.
    """
    here = next((lane for lane in LANES if lane.id == lane_id and lane.devices), None)
    larger = (lane for lane in LANES if here and lane.size_class == here.size_class and lane.devices > here.devices)
    return next((lane for lane in larger if lane.devices <= devices), None)


def lane_of(devices: int, weights_gb: float) -> Lane:
    """The lane of a model that needs at least this many devices.

    Raises:
        BadInput: when no lane has as many devices.
    """
    size_class = next(name for name, below in SIZE_CLASSES if weights_gb < below)
    for lane in LANES:
        if lane.size_class == size_class and lane.devices >= devices:
            return lane
    raise BadInput(
        f"a model of {weights_gb:.1f} GB needs {devices} devices; lanes have at most {DEVICE_COUNTS[-1]}",
        "use devices with more memory (GPU_MEMORY_PER_DEVICE) or a smaller model",
    )

"""Which devices a step may have now (scheduling spec, section 5). What devices say is read in `plan.nvml`."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from evpack.errors import EvidenceError
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.model import ModelPlan
from evpack.plan.nvml import DeviceFacts, facts_source, read_devices, shared_with_user
from evpack.settings import Settings

IDLE_USED_GB = 1.0
"""Memory in use up to which a device without visible processes counts as idle: a container sees no processes of others,
the driver itself takes up to about 0.6 GB, and one CUDA context with any tensor of use more than what is left."""


@dataclass(frozen=True)
class Demand:
    """What a step asks of its devices."""

    count: int
    free_gb: float
    """Free memory each must have."""
    idle: bool
    """Whether each must be without any other user."""

    @classmethod
    def of(cls, model: ModelPlan, settings: Settings, devices: int) -> Demand:
        """Of the steps that score a model: its share on each device, GPU_MIN_FREE_GB, GPU_REQUIRE_IDLE.

        On a host that is shared with its user only the model must fit.

        Args:
            devices: that the host has.
        """
        share = model.scoring_gb / max(1, model.devices)
        if shared_with_user(settings, devices):
            return cls(model.devices, share, idle=False)
        return cls(model.devices, max(share, settings.gpu_min_free_gb), settings.gpu_require_idle)


def never(device: DeviceFacts, demand: Demand) -> str | None:
    """Why a device will not do however long one waits; None when it may."""
    if device.memory_gb < demand.free_gb:
        return f"{device.memory_gb:.1f} GB in all, {demand.free_gb:.1f} GB free are asked for"
    return None


def not_now(device: DeviceFacts, demand: Demand) -> str | None:
    """Why a device cannot be taken at the moment; None when it can."""
    if device.free_gb < demand.free_gb:
        return f"{device.free_gb:.1f} GB free, {demand.free_gb:.1f} GB are asked for"
    if not demand.idle:
        return None
    if device.processes:
        return f"{device.processes} other processes compute on it"
    if device.used_gb > IDLE_USED_GB:
        return f"{device.used_gb:.1f} GB are in use by processes that cannot be seen"
    return None


def facts_file(home: Home) -> Path:
    """Where the last facts are kept."""
    return home.leases / "facts.json"


def cached_devices(home: Home, max_age_s: float, environ: Mapping[str, str] | None = None) -> list[DeviceFacts]:
    """`read_devices`, or what any process of this host read less than `max_age_s` seconds ago (GPU_CACHE_TTL)."""
    path = facts_file(home)
    key = [socket.gethostname(), facts_source(environ)]
    try:
        found = read_json(path)
        if found["of"] == key and 0 <= time.time() - found["read_at"] < max_age_s:
            return [DeviceFacts(**device) for device in found["devices"]]
    except (OSError, EvidenceError, KeyError, TypeError):
        pass  # none yet, or of another version
    devices = read_devices(environ)
    write_json(path, {"of": key, "read_at": time.time(), "devices": [asdict(device) for device in devices]})
    return devices

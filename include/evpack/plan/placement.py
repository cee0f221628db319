"""Which host each model of a campaign is planned for, and with how many of its devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evpack.errors import BadInput
from evpack.home import Home
from evpack.plan.hosts import HOSTS_ENV, Host, chosen_hosts
from evpack.plan.lanes import CPU_POOL
from evpack.plan.memory import NO_DEVICE_NAMES, Devices, devices_needed, host_devices, least_free_gb, slots_made
from evpack.plan.sources import Source
from evpack.settings import Settings


@dataclass(frozen=True)
class Place:
    """A host as models are planned for it."""

    host: str | None
    """None: this one, in a deployment of a single host."""
    devices: Devices
    cpu_slots: int
    """Steps that may run side by side on the processor, 0 when that is not known."""


def places(settings: Settings, home: Home, devices: Devices | None = None) -> tuple[Place, ...]:
    """The hosts of the deployment: this one as it is, or those that EVPACK_HOSTS lists as it describes them.

    Args:
        home: knows what `evpack airflow setup` made, and quarantined devices.
        devices: of a single host that is to be planned for instead.

    Raises:
        BadInput: EVPACK_HOSTS or the pools' file is malformed, or no device that the settings name can serve.
    """
    if devices is None and (hosts := chosen_hosts()):
        return tuple(Place(host.name, described(host, settings), host.cpu_slots) for host in hosts)
    cpu_slots = (slots_made(home.pools) or {}).get(CPU_POOL, 0)
    return (Place(None, host_devices(settings, home) if devices is None else devices, cpu_slots),)


def place_named(settings: Settings, home: Home, host: str | None) -> Place:
    """The one of `places` that a lane names.

    Raises:
        BadInput: when the deployment has no such host any more.
    """
    found = {place.host: place for place in places(settings, home)}
    if host not in found:
        known = ", ".join(str(name) for name in found if name) or "one host without a name"
        raise BadInput(
            f"the campaign was planned for host {host or 'this one'}; the deployment has {known}", "plan anew"
        )
    return found[host]


def described(host: Host, settings: Settings) -> Devices:
    """The devices of a listed host that the settings admit: nobody looks at them from here.

    Raises:
        BadInput: when each is too small to have GPU_MIN_FREE_GB free, or one is named by a UUID, which is of one host.
    """
    names = settings.gpu_id_list if settings.cuda_visible_devices is None else settings.cuda_visible_devices
    numbers = range(host.devices) if names is None else {_number(name) for name in set(names) - NO_DEVICE_NAMES}
    count = sum(number < host.devices for number in numbers)
    if settings.num_gpus is not None:
        count = min(count, settings.num_gpus)
    if count and host.memory_gb < (least_gb := least_free_gb(settings, host.devices)):
        raise BadInput(
            f"{HOSTS_ENV} gives the devices of {host.name} {host.memory_gb:g} GB each, GPU_MIN_FREE_GB={least_gb:g} "
            "asks for more free",
            "lower GPU_MIN_FREE_GB",
        )
    memory_gb = settings.gpu_memory_per_device or settings.gpu_memory_gb or host.memory_gb
    return Devices(count, memory_gb) if count else Devices(0)


def _number(name: str) -> int:
    if not name.isdecimal():
        raise BadInput(
            f"device {name!r} is named by no number", f"with {HOSTS_ENV} a number means the same on each host"
        )
    return int(name)


def share_out(sources: Sequence[Source], among: Sequence[Place], settings: Settings) -> list[tuple[Place, int]]:
    """A place and a number of devices for each model, in their order.

    The largest model chooses first, and each takes the host that is then least busy for what it has, of those it fits
    on. What a model costs is taken as its weights: loading, editing and scoring all grow with them. Where some hosts
    have devices, no model is planned for one that has none.

    Raises:
        BadInput: naming a model that fits on no host.
    """
    among = [place for place in among if place.devices.count] or list(among)
    busy = dict.fromkeys((place.host for place in among), 0.0)
    chosen: dict[str, tuple[Place, int]] = {}
    for source in sorted(sources, key=lambda source: -source.weights_gb):
        fitting, refused = [], []
        for place in among:
            try:
                count = devices_needed(source.id, source.weights_gb, source.vocab, place.devices, settings)
            except BadInput as error:
                refused.append(error)
            else:
                fitting.append((place, count))
        if not fitting:
            raise refused[-1]
        place, count = min(
            fitting, key=lambda found: (busy[found[0].host] + source.weights_gb) / max(1, found[0].devices.count)
        )
        busy[place.host] += source.weights_gb
        chosen[source.id] = (place, count)
    return [chosen[source.id] for source in sources]

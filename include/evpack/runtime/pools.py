"""How many steps may run at once on a host: the slots of Airflow's pools `cpu` and `gpu`, or of each host's own."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from evpack.home import Home
from evpack.plan.hosts import chosen_hosts
from evpack.plan.lanes import CPU_POOL, GPU_POOL, pool_of
from evpack.processes import cores

STEP_MEMORY_BYTES = 4 * 10**9
"""Memory set aside for one step on the CPU; the largest step of the demo campaign stays below 3 GB."""


def cpu_slots() -> int:
    """Steps at once on the CPU: one per core, as far as memory reaches, at least one."""
    return max(1, min(cores(), psutil.virtual_memory().total // STEP_MEMORY_BYTES))


def pool_drift(made: Mapping[str, int], running: Mapping[str, int]) -> dict[str, str]:
    """How pools differ from those that were made (EVPACK_HOME/pools.json), by name: a line each.

    Args:
        made: slots by name.
        running: the same as Airflow has them now, with any others.
    """
    return {
        name: f"pool {name} has {running.get(name, 'no')} slots in Airflow, made were {slots}"
        for name, slots in sorted(made.items())
        if running.get(name) != slots
    }


def made_pools(home: Home) -> dict[str, int]:
    """What `evpack airflow setup` made, empty where it never ran.

    Raises:
        BadInput: when the file is not what that wrote.
    """
    from evpack.plan.memory import slots_made

    return slots_made(home.pools) or {}


def pool_slots() -> dict[str, int]:
    """Slots by pool name. `gpu` has one per device that is not broken; without one the plan puts nothing there.

    A quarantined device counts: what is planned and running keeps its slots, and a lease decides on devices.

    Where EVPACK_HOSTS lists several hosts, each has both pools, with its name.

    Raises:
        BadInput: when a variable of the environment that decides about devices is wrong, or names none of this host's.
    """
    from evpack.plan.memory import found_devices
    from evpack.plan.placement import described
    from evpack.settings_resolve import resolve

    settings = resolve({}, {}, os.environ, {})
    if hosts := chosen_hosts():
        slots = {pool_of(CPU_POOL, host.name): host.cpu_slots for host in hosts}
        return slots | {pool_of(GPU_POOL, host.name): described(host, settings).count for host in hosts}
    _, admitted = found_devices(settings)
    return {CPU_POOL: cpu_slots(), GPU_POOL: sum(device.fault is None for device in admitted)}

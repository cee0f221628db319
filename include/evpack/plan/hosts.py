"""The hosts of a deployment that has several, as EVPACK_HOSTS lists them; light, because Airflow asks when it parses.

Each host has lanes, pools and a queue of its own, and a model stays on one host: its baseline, its variants and its
devices are there. Without the variable there is one host, which is not named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from evpack.errors import BadInput

HOSTS_ENV = "EVPACK_HOSTS"
"""``name:DEVICESxGB:STEPS`` with commas between: devices, memory of the smallest, steps at once on the processor."""

_HOST = re.compile(r"(?P<name>[A-Za-z0-9_-]+):(?P<devices>\d{1,3})x(?P<gb>\d{1,4}(\.\d{1,3})?):(?P<cpu>[1-9]\d{0,3})")


@dataclass(frozen=True)
class Host:
    """One host."""

    name: str
    """Of its queue too: its worker listens to that."""
    devices: int
    memory_gb: float
    """Of the smallest device, GB."""
    cpu_slots: int
    """Steps at once on the processor."""


def check_one_host() -> None:
    """Refuse to run here what is meant for several hosts.

    Raises:
        BadInput: when EVPACK_HOSTS lists hosts: the embedded Airflow runs every lane's steps on its own.
    """
    if hosts := chosen_hosts():
        raise BadInput(
            f"{HOSTS_ENV} lists {', '.join(host.name for host in hosts)}; this command would run every step here",
            "trigger the DAG of the Airflow that serves them (docs/airflow.md), or unset the variable",
        )


def chosen_hosts(environ: Mapping[str, str] | None = None) -> tuple[Host, ...]:
    """The hosts that EVPACK_HOSTS lists, none where it is not set.

    Args:
        environ: where it is looked for; this process's environment when None.

    Raises:
        BadInput: naming the entry that is none, or the host that stands there twice.
    """
    text = (os.environ if environ is None else environ).get(HOSTS_ENV, "").strip()
    hosts: dict[str, Host] = {}
    for entry in text.split(",") if text else ():
        found = _HOST.fullmatch(entry.strip())
        if found is None or found["name"] in hosts:
            raise BadInput(
                f"{HOSTS_ENV}: {entry.strip()!r} is {'no host' if found is None else 'listed twice'}",
                "write name:DEVICESxGB:STEPS with commas between, e.g. alpha:8x80:32,beta:0x0:16",
            )
        hosts[found["name"]] = Host(found["name"], int(found["devices"]), float(found["gb"]), int(found["cpu"]))
    return tuple(hosts.values())

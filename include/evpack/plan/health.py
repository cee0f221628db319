"""What a deployment remembers about its accelerators: steps in a row that failed on one, and quarantine.

One file by UUID in EVPACK_HOME/leases, written by whoever holds or claims the device (`runtime.leases`). Planning reads
it too: a device that no step gets is none to plan for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from evpack.errors import EvidenceError
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.rundir import checked_id


@dataclass(frozen=True)
class Health:
    """What is remembered about a device."""

    failures: int = 0
    """Steps in a row that failed on it without another explanation."""
    quarantined: str | None = None
    """Why no step gets it; None when steps may."""
    since: str | None = None
    step: str | None = None
    """The step that had it quarantined."""


def health_of(home: Home, uuid: str) -> Health:
    """The record of a device; an unreadable one is a quarantine, never a clean record."""
    try:
        found = read_json(record_file(home, uuid))
        return Health(int(found["failures"]), found["quarantined"], found["since"], found.get("step"))
    except FileNotFoundError:
        return Health()
    except (OSError, EvidenceError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Health(0, f"its record cannot be read: {error}")


def remember(home: Home, uuid: str, health: Health) -> None:
    """Write the record of a device."""
    write_json(record_file(home, uuid), {"uuid": uuid, **asdict(health)})


def record_file(home: Home, uuid: str) -> Path:
    """Where the record of a device is."""
    return home.leases / f"{checked_id(uuid, 'device UUID')}.json"

"""What every step function gets and gives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from evpack.home import Home
from evpack.plan.model import CampaignPlan, StepPlan
from evpack.rundir import RunDir
from evpack.settings import Settings

log = logging.getLogger("evpack.step")
"""Steps log here; the runner sends it to the task log and to logs/tasks/<step>.log."""


@dataclass(frozen=True)
class Leased:
    """The accelerators a step holds."""

    devices: tuple[str, ...] = ()
    """UUIDs."""
    simulated: bool = False
    """Whether they are pretended: then the step computes on the CPU, and says so."""
    waited_s: float = 0.0
    """Seconds until they were free."""


@dataclass(frozen=True)
class StepContext:
    """Everything a step may know. Steps read no environment variable of the reference and no Airflow state."""

    run: RunDir
    plan: CampaignPlan
    settings: Settings
    step: StepPlan
    home: Home
    attempt: int = 1
    """Try number, part of temporary names."""
    batch: int | None = None
    """Windows per forward pass when an out-of-memory retry lowered it, else None (the plan's)."""
    leased: Leased = Leased()
    """The devices of this attempt; none for a step on the CPU."""


LeaseDevices = Callable[[StepContext, int], AbstractContextManager[Leased]]
"""Holds that many devices while its block runs. Given to the runner by whoever starts it (`runtime.leases`)."""

StepFunction = Callable[[StepContext], list[Path]]
"""Does the work and returns the files and directories it published (absolute, inside the run directory).

The runner hashes them into the completion marker. A step publishes with `publishing.publishing` or
`publishing.write_atomic` and treats `AlreadyPublished` of an identical earlier attempt as done. A function that
finds its output present but no marker (killed in between) archives or reuses it; it never trusts it blindly.
"""

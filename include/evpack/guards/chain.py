"""Running the guards of PACK_GUARDS_ORDER: one block per guard, and an error entry for one that could not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evpack.catalog.edit_spec import ResolvedEdit, parse_scope
from evpack.catalog.policy import Policy
from evpack.checkpoint.contents import Described
from evpack.checkpoint.scope import select
from evpack.errors import CheckpointError, DiskFull, OutOfMemory, is_machine_fault
from evpack.guards import rmt, spectral, variance
from evpack.guards.base import GUARD_ERROR
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords

Block = dict[str, Any]

_STOPS = (CheckpointError, OutOfMemory, DiskFull, OSError, MemoryError)
"""Damaged files and missing room: no findings about the subject. They end the step."""


@dataclass(frozen=True)
class Declaration:
    """What a clean edit of the plan means to change. A fault and a stress edit declare nothing that is excused."""

    lowers_rank_of: frozenset[str] = frozenset()
    """Tensors whose rank is meant to be lowered."""

    @classmethod
    def of(cls, edit: ResolvedEdit | None, baseline: Described, *, clean: bool) -> Declaration:
        """From the plan's resolved edit, never from what came with the variant.

        Raises:
            BadInput: when the edit names a layer that the model does not have.
            CheckpointError: when its scope matches nothing.
        """
        if edit is None or not clean or edit.rank is None:
            return cls()
        return cls(frozenset(place.name for place in select(baseline, parse_scope(edit.scope))))


def sampled_windows(order: Sequence[str], policy: Policy) -> int:
    """Windows per run whose activations the guards of the order need; 0 when none does."""
    return max(
        int(policy.number("rmt.windows.count")) if rmt.NAME in order else 0,
        int(policy.number("variance.calibration.windows")) if variance.NAME in order else 0,
    )


def guarded(name: str, work: Callable[[], Block]) -> Block:
    """The block of a guard; when it cannot run, one with status ``error``, which clears its flag.

    Raises:
        CheckpointError, OutOfMemory, DiskFull, OSError, MemoryError: these say nothing about the subject, nor does
            what torch raises when an accelerator fails.
    """
    try:
        return work()
    except _STOPS:
        raise
    except Exception as error:
        if is_machine_fault(error):
            raise
        return could_not_run(name, f"{type(error).__name__}: {error}")


def could_not_run(name: str, why: str) -> Block:
    """The block of a guard that could not run."""
    message = f"guard {name} could not run: {why}"
    failure = {"type": GUARD_ERROR, "severity": "error", "message": message, "tensors": [], "count": 1}
    return {"status": "error", "action": "abort", "failures": [failure]}


def spectral_block(
    subject: SpectralRecords, baseline: SpectralRecords, policy: Policy, declaration: Declaration
) -> Block:
    """The spectral guard's block."""
    return spectral.assess(subject, baseline, policy, declared_rank=declaration.lowers_rank_of)[1]


def rmt_block(
    subject: ActivationRecords, baseline: ActivationRecords, policy: Policy, declaration: Declaration
) -> Block:
    """The RMT guard's block."""
    return rmt.assess(subject, baseline, policy, lowers_rank=bool(declaration.lowers_rank_of))[1]


def variance_block(
    subject: ActivationRecords,
    baseline: ActivationRecords,
    policy: Policy,
    try_scales: Callable[[Mapping[str, float]], variance.Trial | None],
) -> Block:
    """The variance guard's block; scales are tried in correct mode only, and only when some are proposed."""
    correct = not policy.flag("variance.monitor_only")
    proposal = variance.propose(subject, baseline, policy)
    trial = try_scales(proposal.scales) if correct and proposal.scales else None
    return variance.assess(proposal, trial, policy, correct=correct)[1]

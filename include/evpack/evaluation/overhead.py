"""Does guarding a model change what it is held to? The baseline's perplexity with guards listening, and without.

Guards only listen to the metric's own forward passes, so the two should be equal to the last bit. Where a profile asks
for it, calibration scores the baseline's first run once more with nobody listening, and every report of the model
carries the ratio. It says nothing about time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from evpack.catalog.policy import Policy
from evpack.errors import EvidenceError
from evpack.evaluation.interval import exp_or_none
from evpack.evaluation.records import WindowRecords

BARE_FILE = "bare_records.json"
"""The baseline's losses on the windows of the first run with nobody listening, beside the calibration runs."""
OVERHEAD_FLAG = "guard_overhead_acceptable"


@dataclass(frozen=True)
class Overhead:
    """The baseline's mean losses on the same windows, nats per predicted token."""

    run: int
    guarded: float
    bare: float

    @classmethod
    def of(cls, guarded: WindowRecords, bare: WindowRecords) -> Overhead:
        """From two scorings of the baseline.

        Raises:
            EvidenceError: when they are not of the same checkpoint and windows, scored alike, or a loss is not finite.
        """
        for name in ("model", "side", "run", "windows_digest", "checkpoint_digest", "compute"):
            ours, theirs = getattr(guarded, name), getattr(bare, name)
            if ours != theirs:
                raise EvidenceError(
                    f"the baseline with guards and without differ in {name}: {ours} and {theirs}", "redo calibrate"
                )
        return cls(guarded.run, _mean_loss(guarded), _mean_loss(bare))


def asked_for(policy: Policy) -> bool:
    """Whether tier and profile want it measured."""
    return policy.flag("guard_overhead.measured")


def overhead_block(found: Overhead | None, policy: Policy) -> dict[str, Any]:
    """The report's `guard_overhead` block; where it was asked for and is missing, it does not pass.

    Args:
        found: None where calibration measured none.
    """
    threshold = policy.number("guard_overhead.threshold")
    asked = asked_for(policy)
    block: dict[str, Any] = {
        "overhead_threshold": threshold,
        "threshold_percent": 100 * threshold,
        "evaluated": asked,
        "skipped": not asked,
        "skip_reason": None if asked else f"profile {policy.profile} does not ask for it",
        "passed": None,
        "source": None,
        **dict.fromkeys(("bare_ppl", "guarded_ppl", "overhead_ratio", "overhead_percent")),
    }
    if not asked:
        return block
    if found is None:
        return block | {"passed": False, "errors": [f"calibration left no {BARE_FILE}"]}
    shift = found.guarded - found.bare
    ratio = exp_or_none(shift)
    return block | {
        "passed": shift <= math.log1p(threshold),
        "source": f"the baseline on the windows of run {found.run}",
        "bare_ppl": exp_or_none(found.bare),
        "guarded_ppl": exp_or_none(found.guarded),
        "overhead_ratio": ratio,
        "overhead_percent": None if ratio is None else 100 * (ratio - 1),
    }


def _mean_loss(records: WindowRecords) -> float:
    losses = [window.nll_sum for window in records.windows if window.nll_sum is not None]
    if len(losses) < len(records.windows):
        raise EvidenceError(f"losses of the baseline {records.model} are not finite", "redo calibrate")
    return math.fsum(losses) / sum(window.predicted_tokens for window in records.windows)

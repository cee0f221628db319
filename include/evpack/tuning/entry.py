"""A sweep's trials as an entry of the tuned parameters file, with the figures that justify it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.evaluation.assess import paired_differences
from evpack.evaluation.interval import Interval, paired_t_interval
from evpack.evaluation.records import WindowRecords
from evpack.tuning.acceptance import Acceptance, Shape
from evpack.tuning.ladder import parameters_of, words

REQUIRED = 0.99
"""What the lower end of the interval of P(all runs accept) must reach."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What became of one rung."""

    edit: ResolvedEdit
    windows: int = 0
    """Windows it was scored on: the first run's when that one did not pass, else the pool's; 0: no variant."""
    interval: Interval | None = None
    """Of the mean paired difference, nats per token; None when there is no variant or a loss is not finite."""
    acceptance: Acceptance | None = None
    problem: str = ""
    """Why it could not be made, or was dropped after one run."""

    @property
    def good(self) -> bool:
        """Whether all runs of a campaign accept it, surely enough."""
        return self.acceptance is not None and self.acceptance.low >= REQUIRED

    def __str__(self) -> str:
        return f"{words(self.edit)}: " + ", ".join(filter(None, (self._ratio(), self._chance(), self.problem)))

    def _ratio(self) -> str:
        figures = self.figures()
        if figures["ratio"] is None:
            return ""
        low, high = figures["ratio_interval"]
        return f"ratio {figures['ratio']:.4f} ({low:.4f} to {high:.4f}) on {self.windows} windows"

    def _chance(self) -> str:
        chance = self.acceptance
        return "" if chance is None else f"P(all runs accept) = {chance.probability:.4f}, at least {chance.low:.4f}"

    def figures(self) -> dict[str, Any]:
        """What was measured, null where it was not."""
        found = self.interval
        ratio = interval = None
        if found is not None and found.mean is not None and found.low is not None and found.high is not None:
            ratio, *interval = (round(math.exp(value), 6) for value in (found.mean, found.low, found.high))
        return {
            "ratio": ratio,
            "ratio_interval": interval,
            "windows": self.windows,
            "acceptance": self.acceptance.to_json() if self.acceptance else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Parameters, figures and, when there is one, the problem."""
        tried: dict[str, Any] = {"scope": self.edit.scope, **parameters_of(self.edit), **self.figures()}
        return tried | ({"problem": self.problem} if self.problem else {})


def pooled(subject: Sequence[WindowRecords], baseline: Sequence[WindowRecords]) -> Interval | None:
    """The 95 % t interval over all windows together; None when a loss of the subject is not finite."""
    if any(window.nll_sum is None for records in subject for window in records.windows):
        return None
    pairs = [paired_differences(*sides) for sides in zip(subject, baseline, strict=True)]
    differences, weights = ([value for pair in pairs for value in pair[k]] for k in (0, 1))
    return paired_t_interval(differences, weights)


def entry_of(trials: Sequence[Trial], shape: Shape, facts: Mapping[str, Any]) -> Entry:
    """The entry of one edit type: its last trial when that one is good, else skipped.

    Args:
        trials: from strong to mild, at least one.
        facts: what the figures hold for.
    """
    *stronger, last = trials
    runs = f"{shape.runs} runs of {shape.preview} + {shape.final} windows"
    if not last.good:
        return {
            "status": "skipped",
            "reason": f"no parameters reach P(all {runs} accept) >= {REQUIRED}; the mildest: {last}",
            "measured": _measured(shape, facts) | {"stronger": [trial.to_json() for trial in trials]},
        }
    reason = f"the strongest that all {runs} accept: {last}"
    if stronger:
        reason += f"; next stronger: {stronger[-1]}"
    return {
        "status": "selected",
        "reason": reason,
        "scope": last.edit.scope,
        "edit_dir_name": last.edit.edit_dir_name,
        **parameters_of(last.edit),
        "measured": _measured(shape, facts) | last.figures() | {"stronger": [trial.to_json() for trial in stronger]},
    }


def _measured(shape: Shape, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "required_probability": REQUIRED,
        "runs": shape.runs,
        "preview_windows": shape.preview,
        "final_windows": shape.final,
        **facts,
    }

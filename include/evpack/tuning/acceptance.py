"""How likely all runs of a campaign accept an edit, estimated from losses measured once on a pool of windows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evpack.catalog.floors import Arm
from evpack.catalog.policy import Policy
from evpack.evaluation.assess import Assessment, assess
from evpack.evaluation.records import WindowLoss, WindowRecords
from evpack.files import sha256_bytes

RESAMPLES = 2000
"""Sets of runs drawn: with P = 0.995 about 10 of them fail, and the interval's lower end is still above 0.99."""
SEED = 503
"""Of the draws; the same for every rung, so that rungs differ by their losses alone."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Shape:
    """What a campaign draws for one clean scenario."""

    runs: int
    preview: int
    final: int
    tokens_available: int
    """Tokens of the whole text, for the policy's minimum fraction."""

    @property
    def per_run(self) -> int:
        """Windows of one run."""
        return self.preview + self.final


@dataclass(frozen=True)
class Acceptance:
    """P(all runs accept), by resampling."""

    accepted: int
    resamples: int
    low: float
    high: float
    """Clopper-Pearson interval of the Monte Carlo estimate, 95 %."""

    @property
    def probability(self) -> float:
        """The estimate."""
        return self.accepted / self.resamples

    def to_json(self) -> dict[str, Any]:
        """As a tuned entry holds it."""
        interval = [round(self.low, 6), round(self.high, 6)]
        return {"probability": self.probability, "interval": interval, "resamples": self.resamples, "seed": SEED}


def judge(subject: WindowRecords, baseline: WindowRecords, policy: Policy, shape: Shape) -> Assessment:
    """One run, judged as a campaign of this shape judges it."""
    return assess(subject, baseline, policy, tokens_available=shape.tokens_available)


def passes(assessment: Assessment) -> bool:
    """Whether a run counts as passed as far as losses decide: metric accepted, every gate on losses true."""
    gates = (flag for name, flag in assessment.validation.items() if name != "hysteresis_applied")
    return assessment.outcome == "accept" and all(gates)


def acceptance(
    subject: Sequence[WindowRecords],
    baseline: Sequence[WindowRecords],
    policy: Policy,
    shape: Shape,
    *,
    resamples: int = RESAMPLES,
) -> Acceptance:
    """Bootstrap of whole campaigns: draw windows into the runs of a campaign, judge each run as `assess` does.

    Each draw first resamples the pool and then takes the runs from that, so that the estimate also carries what a
    pool of this size leaves open about the text. A window drawn twice counts as two windows of equal loss. Which run or
    arm of the pool a window stands in does not matter.

    Args:
        subject: records of the pool, one or more sets of windows.
        baseline: the same windows in the same order.
    """
    ours, theirs = _Slots(subject, shape), _Slots(baseline, shape)
    draw = random.Random(SEED)  # noqa: S311 - a sample that can be drawn again, not a secret
    indices = range(sum(len(records.windows) for records in subject))
    accepted = 0
    for _ in range(resamples):
        pool = draw.choices(indices, k=len(indices))
        runs = [draw.choices(pool, k=shape.per_run) for _ in range(shape.runs)]
        accepted += all(passes(judge(ours.run(run), theirs.run(run), policy, shape)) for run in runs)
    return Acceptance(accepted, resamples, *clopper_pearson(accepted, resamples))


class _Slots:
    """One side's pool, from which runs are put together: slot k of a run has an id and a token digest of its own."""

    def __init__(self, records: Sequence[WindowRecords], shape: Shape) -> None:
        self._form = records[0]
        windows = sorted((window for part in records for window in part.windows), key=lambda window: window.id)
        counts: tuple[tuple[Arm, int], ...] = (("preview", shape.preview), ("final", shape.final))
        arms = [arm for arm, count in counts for _ in range(count)]
        self._table = [[_placed(window, slot, arm) for window in windows] for slot, arm in enumerate(arms)]

    def run(self, chosen: Sequence[int]) -> WindowRecords:
        """Records of a run that holds the chosen windows."""
        windows = tuple(slot[index] for slot, index in zip(self._table, chosen, strict=True))
        return self._form.model_copy(update={"windows": windows})


def _placed(window: WindowLoss, slot: int, arm: Arm) -> WindowLoss:
    return window.model_copy(update={"id": slot, "arm": arm, "tokens_sha256": sha256_bytes(b"%d" % slot)})


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934): quantiles of Beta(k, n-k+1) and Beta(k+1, n-k)."""
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high

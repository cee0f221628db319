"""Does the interval that gates cover the truth as often as it says?

The truth is the mean over a large pool of windows that a subject and its baseline were really scored on. Samples are
drawn from the pool in two ways: with replacement, where the pool is the population, and as a campaign's schedule takes
them (spread over the text, no window twice).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from evpack.data.windows import WindowDemand, schedule_runs
from evpack.evaluation.bca import bca_interval
from evpack.evaluation.interval import paired_t_interval
from evpack.evaluation.records import WindowRecords
from evpack.pack import layout
from studies.ground import Ground
from studies.judged import report_directory
from studies.proportion import proportion
from studies.subjects import Subject

SIZES = (16, 32, 64, 128)
"""Windows of a sample, both arms together."""
TRIALS = 2000
"""Monte Carlo error of a coverage of 95 %: 0.5 points."""
BCA_SIZES = (32, 64)
BCA_TRIALS = 400
"""A bootstrap each; their Monte Carlo error is 1.1 points."""
BCA_REPLICATES = 999


def coverage(ground: Ground, pools: Sequence[Subject], *, trials: int, bca_trials: int) -> list[dict[str, Any]]:
    """One row per subject and sample size."""
    return [row for subject in pools for row in _rows(ground, subject, trials, bca_trials)]


def _rows(ground: Ground, subject: Subject, trials: int, bca_trials: int) -> Iterator[dict[str, Any]]:
    import numpy

    pool = numpy.array(differences(ground, subject))
    truth = math.fsum(pool) / len(pool)
    for size in SIZES:
        if size > len(pool) // 4:
            continue
        draw = numpy.random.default_rng(1000 + size)
        samples = [pool[draw.integers(0, len(pool), size)] for _ in range(trials)]
        scheduled = (pool[_scheduled(len(pool), size, seed)] for seed in range(trials))
        row: dict[str, Any] = {
            "model": ground.model.name,
            "subject": subject.id,
            "family": subject.family,
            "what": subject.place,
            "pool": len(pool),
            "truth": truth,
            "sd": float(pool.std(ddof=1)),
            "skewness": float(((pool - truth) ** 3).mean() / pool.std() ** 3) if pool.std() else None,
            "windows": size,
            "t": _covered(((i.low, i.high) for i in map(paired_t_interval, map(list, samples))), truth),
            "t_as_scheduled": _covered(((i.low, i.high) for i in map(paired_t_interval, map(list, scheduled))), truth),
        }
        if size in BCA_SIZES and bca_trials:
            found = (
                bca_interval(list(sample), [1.0] * size, seed=seed, replicates=BCA_REPLICATES)["ci"] or (None, None)
                for seed, sample in enumerate(samples[:bca_trials])
            )
            row["bca"] = _covered(found, truth)
        yield row


def differences(ground: Ground, subject: Subject) -> list[float]:
    """Paired differences of the log-loss per token over all of a subject's runs, in the order of the text."""
    found: dict[int, float] = {}
    for run in subject.runs:
        ours = WindowRecords.parse((report_directory(ground, subject, run) / layout.RECORDS).read_bytes(), "records")
        theirs = WindowRecords.parse(ground.calibration(run, layout.RECORDS), "records")
        for now, before in zip(ours.windows, theirs.windows, strict=True):
            found[now.id] = ((now.nll_sum or math.nan) - (before.nll_sum or math.nan)) / now.predicted_tokens
    return [found[window] for window in sorted(found)]


@cache
def _scheduled(pool: int, size: int, seed: int) -> list[int]:
    """A sample as the schedule of a campaign with one run takes it."""
    run = schedule_runs(pool, WindowDemand(1, size // 2, size - size // 2, 2, 2), seed)[0]
    return [*run.preview, *run.final]


def _covered(bounds: Any, truth: float) -> dict[str, Any]:
    hits = [low is not None and low <= truth <= high for low, high in bounds]
    return proportion(sum(hits), len(hits))

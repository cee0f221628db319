"""Every report of a model under today's thresholds, one row each, with the statistics that thresholds cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from evpack.catalog.policy import Policy
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.rmt import block_count, mean_risks, trimmed_mean
from evpack.guards.spectral_records import SpectralRecords, family
from evpack.pack import layout
from evpack.verdict.outcome import RunOutcome
from studies.ground import Ground
from studies.judged import judged, report_directory
from studies.subjects import Subject


@dataclass(frozen=True)
class Row:
    """One report."""

    model: str
    subject: Subject
    run: int
    outcome: RunOutcome
    statistics: dict[str, float | None]

    @property
    def kind(self) -> str:
        """The subject's."""
        return self.subject.kind


def rows(ground: Ground, subjects: Iterable[Subject], policy: Policy, every: int = 1) -> Iterator[Row]:
    """Judge every report of the subjects.

    Raises:
        EvidenceError: when files of a report do not fit together.
        FileNotFoundError: when a subject was not measured.
    """
    for subject in subjects:
        for run in subject.runs:
            outcome, report = judged(ground, subject, run, policy, every)
            yield Row(ground.model.name, subject, run, outcome, _statistics(ground, subject, run, report))


def _statistics(ground: Ground, subject: Subject, run: int, report: dict[str, Any]) -> dict[str, float | None]:
    metric, spectral, variance = report["primary_metric"], report["spectral"], report["variance"]
    summary = spectral.get("summary", {})
    return {
        "log_ratio": None if metric["pooled"]["ratio"] is None else math.log(metric["pooled"]["ratio"]),
        "spectral_ratio": summary.get("max_abs_log_ratio"),
        "caps_applied": spectral.get("caps_applied"),
        "stable_rank_ratio": summary.get("smallest_stable_rank_ratio"),
        "collapsed_share": _collapsed(report_directory(ground, subject, run) / layout.SPECTRAL),
        "variance_deviation": variance.get("max_abs_deviation"),
        **edge_statistics(ground, subject, run),
    }


def _collapsed(file: Path) -> float | None:
    """The largest share of collapsed rows or columns of a matrix."""
    if not file.is_file():
        return None
    matrices = SpectralRecords.parse(file.read_bytes(), file.name).matrices.values()
    return max((max(m.rows.fraction, m.columns.fraction) for m in matrices), default=0.0)


def edge_statistics(ground: Ground, subject: Subject, run: int) -> dict[str, float | None]:
    """Ways to sum up how far edge risks moved."""
    file = report_directory(ground, subject, run) / layout.ACTIVATIONS
    if not file.is_file():
        return {}
    now = mean_risks(ActivationRecords.parse(file.read_bytes(), file.name))
    before = mean_risks(ground.activations(run))
    moved = {name: math.log(now[name] / risk) for name, risk in before.items() if name in now}
    if not moved:
        return {}
    sizes = sorted(map(abs, moved.values()))
    families: dict[str, list[float]] = {}
    for name, d in moved.items():
        families.setdefault(family(name), []).append(d)
    found = {
        "edge_rms": rms(moved.values()),
        "edge_mean": fmean(sizes),
        "edge_median": median(sizes),
        "edge_trimmed": trimmed_mean(moved.values()),
        "edge_trimmed_by_a_tenth": trimmed_mean(moved.values(), 0.1),
        "edge_trimmed_by_a_third": trimmed_mean(moved.values(), 1 / 3),
        "edge_family_rms_max": max(map(rms, families.values())),
        "edge_norms_rms": rms(d for name, d in moved.items() if "norm" in name),
        "edge_norms_mean": fmean([abs(d) for name, d in moved.items() if "norm" in name] or [0.0]),
    }
    root = math.sqrt(block_count(before))
    return {**found, **{f"{name}_per_root_block": value / root for name, value in found.items()}}


def edge_risks_of_other_windows(ground: Ground) -> list[float]:
    """Root mean squares of d of the baseline itself, from one run's windows to the next one's."""
    risks = [mean_risks(ground.activations(run)) for run in range(1, ground.model.runs + 1)]
    return [
        rms(math.log(now[name] / before[name]) for name in before.keys() & now.keys())
        for before, now in itertools.pairwise(risks)
    ]


def rms(values: Iterable[float]) -> float:
    """Root mean square, 0 of nothing."""
    found = list(values)
    return math.sqrt(fmean(d * d for d in found)) if found else 0.0

"""The calibrated preset of one model, from its calibration runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.errors import EvidenceError
from evpack.evaluation.interval import t_quantile

DEFAULT_BAND = (0.95, 1.05)
"""Drift that is never remarkable (the reference's default band)."""
MIN_HALF_WIDTH = 0.02
"""Narrowest half width of a derived band: few or equal runs would otherwise give a band of no width."""


@dataclass(frozen=True)
class Drift:
    """Final over preview perplexity of the baseline, over calibration runs."""

    values: tuple[float, ...]
    mean: float
    std: float
    """Sample standard deviation, 0 for one run."""
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Drift:
        """The band in which the drift of a next run falls with 95 % probability, joined with the default band.

        Half width = t(0.975, n-1) * s * sqrt(1 + 1/n) (prediction interval of one further normal draw), at least
        `MIN_HALF_WIDTH`; with one run the default band.

        Raises:
            EvidenceError: when there is no run or a drift is not a positive number.
        """
        if not values or not all(math.isfinite(v) and v > 0 for v in values):
            raise EvidenceError(f"calibration drifts {list(values)} are not positive numbers", "redo calibrate")
        n, mean = len(values), math.fsum(values) / len(values)
        if n == 1:
            return cls(tuple(values), mean, 0.0, *DEFAULT_BAND)
        std = statistics.stdev(values)
        half = max(MIN_HALF_WIDTH, t_quantile(n - 1) * std * math.sqrt(1 + 1 / n))
        low, high = min(DEFAULT_BAND[0], mean - half), max(DEFAULT_BAND[1], mean + half)
        return cls(tuple(values), mean, std, round(max(low, 0.0), 4), round(high, 4))

    @property
    def compatible(self) -> bool:
        """Whether the mean drift lies in the default band."""
        return DEFAULT_BAND[0] <= self.mean <= DEFAULT_BAND[1]

    def to_json(self) -> dict[str, Any]:
        """The drift block of calibration_stats.json."""
        return {
            "values": list(self.values),
            "mean": self.mean,
            "std": self.std,
            "band_compatible": self.compatible,
            "suggested_band": [self.low, self.high],
            "gates": False,
        }


def derive(
    reports: Sequence[Mapping[str, Any]], *, baseline: str, guards_order: Sequence[str], seed: int, noop_shift: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The preset and the statistics behind it.

    The band is derived from the raw drift and gates nothing: the gate is on the drift relative to the baseline on the
    same windows, whose calibrated value is 1. So no ``primary_metric.drift_band`` is written and the policy's holds.

    Args:
        reports: baseline_report.json of each calibration run of one model.
        baseline: where the baseline lies, relative to the run directory.
        guards_order: guards in the order they run; guards outside it get no section.
        seed: of the permutation that all runs are slices of.
        noop_shift: `noop.noop_shift` of the model, nats per predicted token.

    Returns:
        (preset, calibration statistics), keys in the order in which they are written.

    Raises:
        EvidenceError: when there is no report, or reports differ in what they measured.
    """
    if not reports:
        raise EvidenceError("no calibration run to derive a preset from", "set drift_calibration_runs to at least 1")
    first = reports[0]
    for report in reports:
        for block in ("compute", "checkpoint_digest"):
            if report[block] != first[block]:
                raise EvidenceError(f"calibration runs differ in {block}: {report[block]} and {first[block]}")
    drift = Drift.of([report["primary_metric"]["drift"] for report in reports])
    meta, dataset = first["meta"], first["dataset"]
    preset = {
        "_calibration_meta": {
            "model_name": meta["model_name"],
            "num_runs": len(reports),
            "tier": meta["tier"],
            "drift_mean": drift.mean,
            "drift_std": drift.std,
            "drift_band_compatible": drift.compatible,
            "suggested_drift_band": {"min": drift.low, "max": drift.high},
            "noop_shift": noop_shift,
        },
        "model": {"id": baseline},
        "dataset": {
            "provider": dataset["provider"],
            "split": None,
            "seq_len": dataset["seq_len"],
            "stride": dataset["stride"],
            "preview_n": dataset["windows"]["preview"],
            "final_n": dataset["windows"]["final"],
            "seed": seed,
        },
        "guards": {"order": list(guards_order)},
    }
    stats = {
        "schema": "evpack_calibration_stats_v1",
        "model_name": meta["model_name"],
        "runs": [report["meta"]["run"] for report in reports],
        "guards_order": list(guards_order),
        "drift": drift.to_json(),
        "noop_shift": noop_shift,
        "compute": first["compute"],
    }
    return preset, stats


def read_preset(path: Path) -> dict[str, Any]:
    """A preset file.

    Raises:
        EvidenceError: when it is missing, not YAML, or lacks a section.
    """
    import yaml

    mend = "redo derive_preset"
    try:
        value = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise EvidenceError(f"preset {path} cannot be read: {error}", mend) from error
    sections = ("_calibration_meta", "dataset", "guards")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), dict) for name in sections):
        raise EvidenceError(f"preset {path} lacks one of {', '.join(sections)}", mend)
    return value

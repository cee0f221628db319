"""False alarms and power: counts over reports, each with its exact interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evpack.catalog.policy import Policy
from evpack.evaluation.interval import paired_t_interval
from studies.coverage import differences
from studies.ground import Ground
from studies.proportion import proportion
from studies.subjects import Subject
from studies.table import Row

OWN_GUARD = {
    "rmt_norm_noise": "rmt",
    "spectral_moderate_scale": "spectral",
    "ve_mlp_scale_skew": "variance",
}
"""The guard that an informational injection was made to raise; its scenario's detectors ask that guard only."""


def false_alarms(rows: Sequence[Row]) -> dict[str, Any]:
    """Reports of subjects that must pass: by class, and for clean ones by edit."""
    found = {kind: _alarms([row for row in rows if row.kind == kind]) for kind in ("noop", "mild", "clean")}
    harmless = [row for row in rows if row.kind in ("noop", "mild")]
    families = sorted({row.subject.family for row in rows if row.kind == "clean"})
    by_edit = {edit: _alarms([r for r in rows if r.kind == "clean" and r.subject.family == edit]) for edit in families}
    return {**found, "harmless": _alarms(harmless), "clean_by_edit": by_edit}


def _alarms(rows: Sequence[Row]) -> dict[str, Any]:
    """How often the whole chain fails a report, by which gates, and how often it gives a signal of each kind."""
    reasons = Counter(reason for row in rows for reason in row.outcome.reasons)
    return {
        "subjects": len({row.subject.id for row in rows}),
        "failed": _share(rows, lambda row: not row.outcome.passed),
        "reasons": dict(sorted(reasons.items())),
        "signals": {
            kind: _share(rows, lambda row, kind=kind: kind in row.outcome.signals)  # type: ignore[misc]
            for kind in ("gate_flip", "remediation", "detected_shift")
        },
    }


def power(ground: Ground, rows: Sequence[Row], policy: Policy) -> dict[str, Any]:
    """Reports of damage: detected by the detectors of the scenario, over all places."""
    found: dict[str, Any] = {}
    for kind in ("required", "catastrophic", "informational"):
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.kind == kind:
                name = row.subject.family if kind != "catastrophic" else row.subject.id
                groups.setdefault(_named(row, name), []).append(row)
        found[kind] = {name: _detected(ground, group, policy) for name, group in sorted(groups.items())}
    return found


def _named(row: Row, name: str) -> str:
    return row.subject.id if row.subject.edit is not None else name


def _detected(ground: Ground, rows: Sequence[Row], policy: Policy) -> dict[str, Any]:
    first = rows[0].subject
    hits: Callable[[Row], bool] = lambda row: bool(row.outcome.matched)  # noqa: E731
    places = sorted({row.subject.place for row in rows})
    matched = Counter(detector for row in rows for detector in row.outcome.matched)
    entry: dict[str, Any] = {
        "places": len(places),
        "places_detected": sum(all(hits(r) for r in rows if r.subject.place == place) for place in places),
        "detected": _share(rows, hits),
        "by_detector": dict(sorted(matched.items())),
        "rejected": _share(rows, lambda row: row.outcome.outcome == "reject"),
        "ratio": middle(row.outcome.ratio for row in rows),
        "own_guard": OWN_GUARD.get(first.family) if first.edit is None else None,
        "any_signal": _share(rows, lambda row: bool(row.outcome.signals)),
    }
    if first.kind == "catastrophic":
        entry |= _truly_fails(ground, first, policy)
    return entry


def _truly_fails(ground: Ground, subject: Subject, policy: Policy) -> dict[str, Any]:
    """Whether an edit fails over all its windows together; only then can a report be asked to say so."""
    import math

    found = differences(ground, subject)
    interval = paired_t_interval(found)
    limit = math.log(policy.acceptance[1])
    ratio = None if interval.low is None or interval.high is None else [math.exp(interval.low), math.exp(interval.high)]
    return {
        "windows": len(found),
        "ratio_of_all_windows": ratio,
        "truly_fails": interval.low is not None and interval.low > limit,
    }


def _share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> dict[str, Any]:
    return proportion(sum(map(holds, rows)), len(rows))


def middle(values: Iterable[float | None]) -> Mapping[str, float] | None:
    """Smallest, middle and largest of those that are known."""
    known = sorted(value for value in values if value is not None)
    return {"least": known[0], "median": known[len(known) // 2], "most": known[-1]} if known else None

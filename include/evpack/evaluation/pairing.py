"""Whether subject and baseline losses may be subtracted window by window. A mismatch never drops windows."""

from __future__ import annotations

from collections.abc import Sequence

from evpack.catalog.floors import Arm
from evpack.evaluation.records import ARMS, WindowRecords

_NAMED = 3
"""Window ids a reason names at most."""


def pairing_reason(subject: WindowRecords, baseline: WindowRecords) -> str | None:
    """Why the sides do not pair, as a short typed reason (``<arm>_missing_ids:[..]``, ...); None when they do."""
    if baseline.side != "baseline" or subject.side != "subject":
        return f"sides_swapped:{subject.side}/{baseline.side}"
    for name in ("model", "run", "seed", "windows_digest"):
        ours, theirs = getattr(subject, name), getattr(baseline, name)
        if ours != theirs:
            return f"{name}_mismatch:{ours}/{theirs}"
    for name in ("device", "dtype", "attention", "batch"):
        ours, theirs = getattr(subject.compute, name), getattr(baseline.compute, name)
        if ours != theirs:
            return f"compute_mismatch:{name}:{ours}/{theirs}"
    for arm in ARMS:
        if reason := _arm_reason(arm, subject, baseline):
            return reason
    return _repeat_reason(subject)


def match_fraction(subject: WindowRecords, baseline: WindowRecords) -> float:
    """Windows with equal arm, id, tokens and count, as a fraction of the baseline's windows and the unexpected ones."""
    expected = {(w.arm, w.id): (w.tokens_sha256, w.predicted_tokens) for w in baseline.windows}
    given = {(w.arm, w.id): (w.tokens_sha256, w.predicted_tokens) for w in subject.windows}
    return sum(given.get(key) == value for key, value in expected.items()) / len(expected.keys() | given.keys())


def overlap_fraction(records: WindowRecords) -> float:
    """Windows whose tokens stand in both arms, as a fraction of all windows."""
    preview, final = ({w.tokens_sha256 for w in records.arm(arm)} for arm in ARMS)
    return sum(w.tokens_sha256 in preview & final for w in records.windows) / len(records.windows)


def _arm_reason(arm: Arm, subject: WindowRecords, baseline: WindowRecords) -> str | None:
    given = {window.id: window for window in subject.arm(arm)}
    expected = {window.id: window for window in baseline.arm(arm)}
    if not expected:
        return f"{arm}_no_baseline_reference"
    if missing := expected.keys() - given.keys():
        return _named(f"{arm}_missing_ids", list(missing))
    if unexpected := given.keys() - expected.keys():
        return _named(f"{arm}_unexpected_ids", list(unexpected))
    if other := [i for i, window in given.items() if window.tokens_sha256 != expected[i].tokens_sha256]:
        return _named(f"{arm}_token_mismatch", other)
    if other := [i for i, window in given.items() if window.predicted_tokens != expected[i].predicted_tokens]:
        return _named(f"{arm}_count_mismatch", other)
    if broken := [i for i, window in expected.items() if window.nll_sum is None]:
        return _named(f"{arm}_baseline_non_finite", broken)
    return None


def _repeat_reason(records: WindowRecords) -> str | None:
    if overlap_fraction(records) > 0:
        return "overlapping_windows"
    tokens = [window.tokens_sha256 for window in records.windows]
    return "duplicate_windows" if len(set(tokens)) < len(tokens) else None


def _named(reason: str, ids: Sequence[int]) -> str:
    return f"{reason}:[{','.join(map(str, sorted(ids)[:_NAMED]))}]"

"""Compare two packs: verdicts, cells, ratios on shared windows, guard signals, revisions, lanes, environment.

A ratio shift is the change of a subject's log-loss relative to its baseline, window by window over the windows that
both packs scored, with the paired 95 % interval that also gates. A regression is: a worse verdict; a gating cell that
no longer gets what it must; a must_pass cell whose shift lies above the policy's band for detectable shifts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evpack.evaluation.interval import paired_t_interval
from evpack.evaluation.records import WindowRecords
from evpack.files import Json, sha256_bytes
from evpack.pack import layout
from evpack.pack.cells import CellState, cell_states
from evpack.pack.evidence import Campaign
from evpack.plan.model import ModelPlan

FORMAT_VERSION = "evidence-pack-diff-v1"
_RANK = {"PASS": 2, "INCOMPLETE": 1, "FAIL": 0}
_STATE_RANK = {"met": 2, "missing": 1, "not met": 0}


@dataclass(frozen=True)
class Side:
    """One of the packs, verified before."""

    label: str
    campaign: Campaign
    fingerprint: str | None

    def document(self, name: str) -> Json:
        """A parsed file of the pack, empty when it has none."""
        return self.campaign.document(name) if self.campaign.has(name) else {}


def compare(old: Side, new: Side) -> dict[str, Any]:
    """What changed from one pack to the other, as plain JSON.

    Raises:
        EvidenceError: when a pack's verdict or records cannot be read.
    """
    verdicts = [str(side.document(layout.VERDICT)["verdict"]) for side in (old, new)]
    cells = list(_cells(old, new))
    regressions = [text for cell in cells for text in cell["regressions"]]
    if _RANK[verdicts[1]] < _RANK[verdicts[0]]:
        regressions.insert(0, f"verdict {verdicts[0]} became {verdicts[1]}")
    return {
        "format_version": FORMAT_VERSION,
        "old": _about(old, verdicts[0]),
        "new": _about(new, verdicts[1]),
        "same_evidence": _evidence(old) == _evidence(new),
        "cells": cells,
        "models": _changes(_revisions(old), _revisions(new)),
        "lanes": _changes(_lanes(old), _lanes(new)),
        "source": _changes(old.document(layout.SOURCE), new.document(layout.SOURCE), skip=("recorded_at",)),
        "environment": _changes(
            _flat(old.document(layout.ENVIRONMENT)), _flat(new.document(layout.ENVIRONMENT)), skip=("recorded_at",)
        ),
        "settings": _changes(_flat(old.document(layout.SETTINGS)), _flat(new.document(layout.SETTINGS))),
        "policy": _changes(_flat(old.campaign.policy.values()), _flat(new.campaign.policy.values())),
        "regressions": regressions,
    }


def _about(side: Side, verdict: str) -> dict[str, Any]:
    return {
        "pack": side.label,
        "verdict": verdict,
        "manifest_digest": f"sha256:{side.campaign.files.digests[layout.MANIFEST]}",
        "signer_fingerprint": side.fingerprint,
        "suite": side.campaign.plan.suite,
    }


def _evidence(side: Side) -> dict[str, str]:
    """Digests of the raw records, by name."""
    files = side.campaign.files
    return {name: digest for name, digest in files.digests.items() if name.endswith(f"/{layout.RECORDS}")}


def _cells(old: Side, new: Side) -> Iterator[dict[str, Any]]:
    before, after = _states(old), _states(new)
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        shift = _shift(old, new, key) if was and now else None
        signals = [set(cell.signals) if cell else set() for cell in (was, now)]
        yield {
            "model": key[0],
            "scenario": key[1],
            "strictness": (now or was).strictness,  # type: ignore[union-attr]  # one of them is there
            "old": _shown(was),
            "new": _shown(now),
            "shift": shift,
            "signals_new": sorted(signals[1] - signals[0]),
            "signals_gone": sorted(signals[0] - signals[1]),
            "regressions": list(_regressions(key, was, now, shift, new)),
        }


def _states(side: Side) -> dict[tuple[str, str], CellState]:
    """Cells by model id and scenario."""
    ids = {model.name: model.id for model in side.campaign.plan.models}
    states = cell_states(side.document(layout.VERDICT), side.document(layout.SCENARIO_SUMMARY))
    return {(ids.get(cell.model, cell.model), cell.scenario): cell for cell in states}


def _shown(cell: CellState | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    ratios = [run["ratio"] for run in cell.runs]
    finite = [ratio for ratio in ratios if ratio is not None]
    mean = math.exp(math.fsum(map(math.log, finite)) / len(finite)) if finite and len(finite) == len(ratios) else None
    return {"state": cell.state, "got": cell.got, "ratio": mean}


def _regressions(
    key: tuple[str, str], was: CellState | None, now: CellState | None, shift: Mapping[str, Any] | None, new: Side
) -> Iterator[str]:
    name = "/".join(key)
    if was is None or not was.gates:
        return
    if now is None:
        yield f"{name}: no longer evaluated"
        return
    if now.gates and _STATE_RANK[now.state] < _STATE_RANK[was.state]:
        yield f"{name}: {was.got} became {now.got}"
    elif not now.gates:
        yield f"{name}: {was.strictness} became informational"
    band = new.campaign.policy.number("metrics.detected_shift.band")
    if now.strictness == "must_pass" and shift and shift["ci"] and shift["ci"][0] > band:
        low, high = shift["display_ci"]
        yield f"{name}: ratio rose by a factor of {shift['ratio']:.4f} ({low:.4f} to {high:.4f})"


def _shift(old: Side, new: Side, key: tuple[str, str]) -> dict[str, Any]:
    """Change of the ratio on the windows that both packs scored, over all runs of a cell."""
    before, after = _losses(old, key), _losses(new, key)
    shared = sorted(before.keys() & after.keys())
    finite = [window for window in shared if before[window] is not None and after[window] is not None]
    differences = [(after[window] or 0.0) - (before[window] or 0.0) for window in finite]
    reason = None
    if not shared:
        reason = "no shared windows"
    elif len(finite) < len(shared):
        reason = f"{len(shared) - len(finite)} shared windows have a loss that is not finite"
    interval = paired_t_interval([] if reason else differences)
    bounds = None if interval.low is None or interval.high is None else [interval.low, interval.high]
    return {
        "windows": len(shared),
        "ratio": None if interval.mean is None else _exp(interval.mean),
        "ci": bounds,
        "display_ci": None if bounds is None else [_exp(bound) for bound in bounds],
        "reason": reason or interval.reason,
    }


def _exp(value: float) -> float | None:
    return math.exp(value) if value < math.log(1e300) else None


def _losses(side: Side, key: tuple[str, str]) -> dict[tuple[str, int], float | None]:
    """Log-loss of the subject minus the baseline's, nats per token, by window (digest of its tokens, their number)."""
    campaign = side.campaign
    model = next(model for model in campaign.plan.models if model.id == key[0])
    found: dict[tuple[str, int], float | None] = {}
    for subject, baseline in _pairs(campaign, model, key[1]):
        reference = {(w.tokens_sha256, w.predicted_tokens): w.nll_sum for w in baseline.windows}
        for window in subject.windows:
            name = (window.tokens_sha256, window.predicted_tokens)
            other = reference.get(name)
            missing = window.nll_sum is None or other is None
            found[name] = None if missing else (window.nll_sum - other) / window.predicted_tokens  # type: ignore[operator]
    return found


def _pairs(campaign: Campaign, model: ModelPlan, scenario: str) -> Iterator[tuple[WindowRecords, WindowRecords]]:
    """Records of subject and baseline of every run of a cell that has a readable report."""
    from evpack.pack.recheck_report import pack_name
    from evpack.verdict.evidence import expected_reports, read_report

    for key, path in expected_reports(campaign.plan).items():
        if (key.model, key.scenario) != (model.name, scenario):
            continue
        found = read_report(campaign.plan, key, path, lambda name: campaign.files.get(pack_name(name)))
        if found is None or found.report is None:
            continue
        place = pack_name(path).removesuffix(layout.REPORT)
        named = layout.in_pack(model.name, found.report["records"]["baseline"]["path"])
        data = [campaign.read(place + layout.RECORDS), campaign.read(named)]
        if sha256_bytes(data[1]) == found.report["records"]["baseline"]["sha256"]:
            yield WindowRecords.parse(data[0], place), WindowRecords.parse(data[1], named)


def _revisions(side: Side) -> dict[str, Json]:
    return {model.id: model.source.revision for model in side.campaign.plan.models}


def _lanes(side: Side) -> dict[str, Json]:
    """Where each model was evaluated, and that it was moved there on the way."""
    plan = side.campaign.plan
    moves = {model.id: [c.text() for c in plan.lane_changes if c.model == model.name] for model in plan.models}
    return {model.id: "; ".join(moves[model.id]) or model.lane for model in plan.models}


def _flat(value: Json, prefix: str = "") -> dict[str, Json]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        name: inner
        for key, item in value.items()
        for name, inner in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _changes(old: Mapping[str, Json], new: Mapping[str, Json], skip: tuple[str, ...] = ()) -> dict[str, list[Json]]:
    """``{name: [old, new]}`` of what differs; null where one side has none."""
    names = sorted((old.keys() | new.keys()) - set(skip))
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}

"""evaluation.report.json: assembled from records, checked against its schema, recomputed by whoever doubts it.

What follows from the records (metric, interval, gates, counts, digests) is derived in one place, `_derived`, which
building and recomputing share. Guard blocks follow from figures of their own (`pack.recheck_guards`);
the rest (provenance, data set) is attested by the run that wrote it.
A guard that is not in the guards' order leaves no flag in `validation`, see docs/decisions/0003-guards-not-run.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.supported import GUARD_STATUSES
from evpack.errors import BrokenContract, EvidenceError
from evpack.evaluation.assess import assess
from evpack.evaluation.overhead import OVERHEAD_FLAG, Overhead, overhead_block
from evpack.evaluation.records import WindowRecords
from evpack.files import digest_json, parse_json, sha256_bytes

REPORT_NAME = "evaluation.report.json"
GUARD_FLAGS: dict[str, str | None] = {
    "invariants": "invariants_pass",
    "spectral": "spectral_stable",
    "rmt": "rmt_stable",
    "variance": None,
}
"""Guards of the report and the validation flag of each; the variance guard has none."""

_PASSING = ("pass", "warn")
_TOLERANCE = 1e-12
"""Relative and absolute: results are equal up to the last bits of exp and log of another C library."""
_VOLATILE = frozenset({"artifacts", "generated_at", "path", "host", "pid", "seconds", "telemetry"})
"""Keys that two runs of the same evaluation need not share."""


@dataclass(frozen=True)
class ReportMeta:
    """Which cell of the plan a report belongs to."""

    model_id: str
    model_name: str
    scenario: str
    category: str
    strictness: str
    run: int
    seed: int
    plan_digest: str


@dataclass(frozen=True)
class RecordFile:
    """A records.json as published."""

    path: str
    """Where it lies: the subject's relative to the report's directory, the baseline's to the model's directory."""
    data: bytes


def build_report(
    *,
    meta: ReportMeta,
    subject: RecordFile,
    baseline: RecordFile,
    policy: Policy,
    guards: Mapping[str, Mapping[str, Any]],
    guards_order: Sequence[str],
    dataset: Mapping[str, Any],
    provenance: Mapping[str, Any],
    edit: Mapping[str, Any],
    generated_at: str,
    bca: Mapping[str, Any] | None = None,
    noop_shift: float | None = None,
    overhead: Overhead | None = None,
) -> dict[str, Any]:
    """Assemble a report. A subject that could not be scored has records whose every loss is null with a reason.

    Args:
        guards: block per guard of the order; each has a `status` of pass, warn, fail or error.
        guards_order: PACK_GUARDS_ORDER as the campaign froze it.
        dataset: at least `provider` and `seq_len`; `tokens_available` (tokens of the whole text) feeds the token floor.
        provenance: what ran where; free form.
        edit: resolved edit or error injection; `name` becomes `edit_name`.
        generated_at: ISO 8601 UTC.
        bca: `bca.bca_interval` of the same pairs; reported, gates nothing.
        noop_shift: `noop.noop_shift` of the model's calibration.
        overhead: of the same, where the policy asks for it.

    Raises:
        BrokenContract: when a guard of the order has no block, or a block no known status.
        EvidenceError: when records are malformed or belong to another cell.
    """
    blocks = {name: guard_block(name, guards, guards_order) for name in GUARD_FLAGS}
    derived = _derived(subject.data, baseline.data, policy, dataset.get("tokens_available"), noop_shift, overhead)
    about = asdict(meta) | {"tier": policy.tier, "profile": policy.profile}
    if wrong := list(differences(derived["meta"], _part(about, derived["meta"]), "meta")):
        raise EvidenceError(f"the records belong to another report: {wrong[0]}")
    flags = {flag: blocks[name]["status"] in _PASSING for name, flag in _evaluated_flags(blocks)}
    files = {"subject": subject, "baseline": baseline}
    report: dict[str, Any] = {
        "schema_version": "v1",
        "run_id": digest_json([asdict(meta), derived["records"]])[:16],
        "artifacts": {"generated_at": generated_at, "report_path": REPORT_NAME},
        "plugins": derived["plugins"],
        "meta": about,
        "edit_name": str(edit.get("name", meta.scenario)),
        "edit": dict(edit),
        "auto": derived["auto"],
        "dataset": dict(dataset) | derived["dataset"],
        "primary_metric": derived["primary_metric"] | {"bca": dict(bca) if bca else None},
        "primary_metric_tail": derived["primary_metric_tail"],
        "confidence": derived["confidence"],
        **_part(derived, ["secondary_metrics"]),
        "validation": derived["validation"] | flags,
        "baseline_ref": derived["baseline_ref"] | {"model_id": meta.model_id},
        "subject_ref": derived["subject_ref"],
        "resolved_policy": derived["resolved_policy"],
        "policy_digest": derived["policy_digest"],
        "guard_overhead": derived["guard_overhead"],
        "guards_order": list(guards_order),
        "records": {side: {"path": files[side].path, **derived["records"][side]} for side in files},
        "provenance": dict(provenance),
    }
    return report | blocks


def provider_digest(windows: str, tokenizer: str | None) -> dict[str, str | None]:
    """`provenance.provider_digest`: what text was scored. Its ids are token ids; positions would prove nothing.

    Args:
        windows: digest of the run's windows.
        tokenizer: digest of the tokenizer that made them.
    """
    return {"ids_sha256": windows, "tokenizer_sha256": tokenizer, "masking_sha256": None}


def check_report(data: bytes, name: str = REPORT_NAME) -> dict[str, Any]:
    """Parse a report and hold it against the shipped schema.

    Raises:
        EvidenceError: naming the place and the fault.
    """
    report = parse_json(data, name)
    error = next(iter(_validator().iter_errors(report)), None)
    if error is not None:
        raise EvidenceError(f"{name}: {error.json_path}: {error.message[:300]}")
    checked: dict[str, Any] = report
    return checked


def recompute(
    report: Mapping[str, Any],
    subject: bytes,
    baseline: bytes,
    policy: Policy,
    noop_shift: float | None = None,
    overhead: Overhead | None = None,
) -> list[str]:
    """Every way in which a report differs from what its records and the policy give.

    Args:
        report: as `check_report` returns it.
        subject: bytes of the subject's records.json.
        baseline: bytes of the baseline's records.json.
        policy: the policy to judge by, which need not be the one the report names.
        noop_shift: `noop.noop_shift` of the model's calibration, None where it has none.
        overhead: of the same, None where it measured none.

    Returns:
        One line per difference, empty when everything follows.
    """
    try:
        available = report["dataset"].get("tokens_available")
        if available is not None and (isinstance(available, bool) or not isinstance(available, int)):
            return [f"dataset.tokens_available: {available!r} is no count"]
        derived = _derived(subject, baseline, policy, available, noop_shift, overhead)
        derived["validation"] |= {
            flag: report[name].get("status") in _PASSING for name, flag in _evaluated_flags(report)
        }
    except EvidenceError as error:
        return [error.what]
    except (KeyError, AttributeError, TypeError) as error:
        return [f"the report lacks a block or holds one of the wrong kind: {error}"]
    found = ["secondary_metrics: the records give none"] if "secondary_metrics" in report.keys() - derived else []
    for block, expected in derived.items():
        given = report.get(block)
        if block in ("dataset", "meta", "baseline_ref"):  # partly attested: only what is derived is compared
            given = _part(given, expected) if isinstance(given, dict) else given
        elif block == "primary_metric" and isinstance(given, dict):
            given = {key: value for key, value in given.items() if key != "bca"}
        elif block == "records" and isinstance(given, dict):
            given = {side: {"sha256": ref.get("sha256")} for side, ref in given.items() if isinstance(ref, dict)}
        found += differences(expected, given, block)
    return found


def report_digest(report: Mapping[str, Any]) -> str:
    """SHA-256 of a report without timestamps, paths and timings: equal for repeats of the same evaluation."""
    return digest_json(_stable(report))


def _derived(
    subject_data: bytes,
    baseline_data: bytes,
    policy: Policy,
    available: int | None,
    noop_shift: float | None,
    overhead: Overhead | None,
) -> dict[str, Any]:
    subject = WindowRecords.parse(subject_data, "subject records")
    baseline = WindowRecords.parse(baseline_data, "baseline records")
    result = assess(subject, baseline, policy, tokens_available=available, noop_shift=noop_shift)
    metric = result.primary_metric
    guarding = overhead_block(overhead, policy)
    overhead_flag = {OVERHEAD_FLAG: guarding["passed"]} if guarding["evaluated"] else {}
    secondary = {} if result.accuracy is None else {"secondary_metrics": [result.accuracy]}
    return secondary | {
        "plugins": {},
        "auto": {"tier": policy.tier, "probes_used": 0, "target_pm_ratio": None},
        "guard_overhead": guarding,
        "meta": {
            "model_name": subject.model,
            "scenario": subject.scenario,
            "run": subject.run,
            "seed": subject.seed,
            "tier": policy.tier,
            "profile": policy.profile,
        },
        "dataset": {
            "windows": {
                "preview": len(subject.arm("preview")),
                "final": len(subject.arm("final")),
                "digest": subject.windows_digest,
                "stats": result.dataset_stats,
            }
        },
        "primary_metric": metric,
        "primary_metric_tail": result.tail,
        "confidence": result.confidence,
        "validation": result.validation | overhead_flag,
        "baseline_ref": {
            "checkpoint_digest": baseline.checkpoint_digest,
            "primary_metric": {
                "kind": metric["kind"],
                "preview": metric["baseline_preview"],
                "final": metric["baseline_final"],
            },
        },
        "subject_ref": {"checkpoint_digest": subject.checkpoint_digest},
        "records": {
            "subject": {"sha256": sha256_bytes(subject_data)},
            "baseline": {"sha256": sha256_bytes(baseline_data)},
        },
        "resolved_policy": policy.values(),
        "policy_digest": {
            "policy_version": "v1",
            "tier_policy_name": policy.tier,
            "thresholds_hash": policy.digest(),
            "hysteresis": {
                "ppl": policy.number("metrics.pm_ratio.hysteresis_ratio"),
                "accuracy_delta_pp": policy.number("metrics.accuracy.hysteresis_delta_pp"),
            },
        },
    }


def guard_block(name: str, guards: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """The block of one guard as a report carries it.

    Raises:
        BrokenContract: when the guard is in the order and has no block, or one without a known status.
    """
    if name not in order:
        return {"evaluated": False, "reason": "not in PACK_GUARDS_ORDER"}
    if name not in guards or guards[name].get("status") not in GUARD_STATUSES:
        raise BrokenContract(
            f"guard {name} is in the order but gave no block with a status of {', '.join(GUARD_STATUSES)}"
        )
    return {"evaluated": True, **guards[name]}


def _evaluated_flags(blocks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, flag in GUARD_FLAGS.items():
        if flag is not None and blocks[name].get("evaluated") is True:
            yield name, flag


def _part(given: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: given[key] for key in keys if key in given}


def differences(expected: Any, given: Any, place: str) -> Iterator[str]:
    """Lines naming each place where two JSON values differ; numbers within the tolerance are equal."""
    if isinstance(expected, Mapping) and isinstance(given, Mapping):
        for key in sorted(expected.keys() | given.keys(), key=str):
            inner = f"{place}.{key}"
            if key not in given:
                yield f"{inner}: missing, the records give {expected[key]!r}"
            elif key not in expected:
                yield f"{inner}: the report says {given[key]!r}, the records give nothing"
            else:
                yield from differences(expected[key], given[key], inner)
    elif isinstance(expected, list) and isinstance(given, list) and len(expected) == len(given):
        for index, (ours, theirs) in enumerate(zip(expected, given, strict=True)):
            yield from differences(ours, theirs, f"{place}[{index}]")
    elif not _equal(expected, given):
        yield f"{place}: the report says {given!r}, the records give {expected!r}"


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or isinstance(theirs, bool) or not _numbers(ours, theirs):
        return type(ours) is type(theirs) and bool(ours == theirs)
    try:
        return math.isclose(ours, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:  # an integer too large for a float
        return False


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _stable(inner) for key, inner in value.items() if key not in _VOLATILE}
    return [_stable(inner) for inner in value] if isinstance(value, list | tuple) else value


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    path = resources.files("evpack.evaluation") / "report.schema.json"
    return Draft202012Validator(parse_json(path.read_bytes(), path.name))

"""final_verdict.txt: the verdict for people, in the reference's order of lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def render(document: Mapping[str, Any]) -> str:
    """The text that follows from final_verdict.json; everything below the counts appears only when there is any."""
    return "\n".join([*_head(document), "", *_counts(document), *_missing(document), *_failed(document)]) + "\n"


def _head(document: Mapping[str, Any]) -> Iterator[str]:
    policy = document["policy"]
    small = f" (unstable: evidence at most {policy['max_evidence_level']})" if policy["unstable"] else ""
    yield "evpack evidence pack - FINAL VERDICT"
    yield f"Verdict: {document['verdict']}"
    yield f"Scenarios manifest: {document['manifest']['path']}"
    yield f"Policy: tier {policy['tier']}, profile {policy['profile']}{small}"


def _counts(document: Mapping[str, Any]) -> Iterator[str]:
    count, shown = document["counts"], document["informational_stress"]
    yield "COUNTS:"
    yield f"  Clean: {count['clean_pass']}/{count['clean_total']} PASS"
    yield f"  Stress: {count['stress_fail']}/{count['stress_total']} FAIL (expected to fail)"
    yield (
        f"  Catastrophic-required stress: {count['catastrophic_required_fail']}/"
        f"{count['catastrophic_required_total']} FAIL"
    )
    yield f"  Error injection detected: {count['error_injection_detected']}/{count['error_injection_total']}"
    if shown["total"]:
        yield (
            f"  Informational stress signal: {shown['signal']}/{shown['total']} "
            f"(fraction {shown['fraction']:.2f}, required {shown['required']:g}; "
            f"clean scenarios {shown['clean']['signal']}/{shown['clean']['total']})"
        )
    yield f"  Reports: {count['runs_usable']}/{count['runs_expected']} usable"


def _missing(document: Mapping[str, Any]) -> Iterator[str]:
    required = [entry for entry in document["failed_requirements"] if entry["requirement"] == "scenario_coverage"]
    if not required:
        return
    yield from ("", "MISSING (required):")
    for entry in required:
        by_category: dict[str, list[str]] = {}
        for gap in entry["missing"]:
            by_category.setdefault(gap["category"], []).append(gap["scenario"])
        for category, ids in sorted(by_category.items()):
            yield f"  {entry['model']}: {category}: {', '.join(ids)}"


def _failed(document: Mapping[str, Any]) -> Iterator[str]:
    if document["failed_requirements"]:
        yield from ("", "FAILED REQUIREMENTS:")
    for entry in document["failed_requirements"]:
        yield f"  - {entry['requirement']}: {entry['message']}"

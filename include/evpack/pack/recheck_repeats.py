"""Does determinism_repeats.json agree with itself, with the campaign and with the report that was repeated?

The repeats themselves are attested: their reports are not packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evpack.errors import EvidenceError
from evpack.evaluation.report import check_report, report_digest
from evpack.pack import layout
from evpack.pack.evidence import Campaign, entry
from evpack.pack.recheck_report import pack_name
from evpack.verdict.evidence import ReportKey, expected_reports


def repeats_problems(campaign: Campaign) -> Iterator[str]:
    """Every way in which the document contradicts what is packed; nothing without one.

    Raises:
        EvidenceError: when it is not JSON.
    """
    if not campaign.has(layout.REPEATS):
        return
    document, place = campaign.document(layout.REPEATS), campaign.at(layout.REPEATS)
    hashes, errors = entry(document, "cert_hashes"), entry(document, "errors")
    if not (isinstance(hashes, list) and hashes and isinstance(errors, list)):
        yield f"{place}: has no digests of reports"
        return
    match = not errors and all(one == hashes[0] for one in hashes)
    expected = {
        "suite": campaign.plan.suite,
        "mode": campaign.settings.determinism,
        "requested": campaign.settings.repeats,
        "completed": len(hashes) - 1,
        "cert_hashes_match": match,
    }
    for name, value in expected.items():
        if (given := entry(document, name)) != value or type(given) is not type(value):
            yield f"{place}: {name} is {given!r:.100}, expected {value!r:.100}"
    yield from (f"{place}: {text}" for text in _of_its_report(campaign, document, str(hashes[0]), match))


def _of_its_report(campaign: Campaign, document: Mapping[str, Any], digest: str, match: bool) -> Iterator[str]:
    names = {model.id: model.name for model in campaign.plan.models}
    key = ReportKey(
        names.get(str(document.get("model_id")), ""), document.get("edit_name", ""), document.get("run", -1)
    )
    path = expected_reports(campaign.plan).get(key)
    if path is None:
        yield f"repeats {key.scenario!r} of {document.get('model_id')!r}, which the plan does not ask for"
        return
    data = campaign.files.get(pack_name(path))
    try:
        report = None if data is None else check_report(data, path)
    except EvidenceError:
        report = None  # said elsewhere
    if report is None:
        return
    if report_digest(report) != digest:
        yield f"its first digest is not that of {pack_name(path)}"
    spread, ratio = document.get("primary_metric_ratio"), report["primary_metric"]["ratio_vs_baseline"]
    if spread is None or ratio is None:
        return
    low, high, delta = (spread.get(name) for name in ("min", "max", "delta"))
    if not low <= ratio <= high or delta != high - low or (match and low != high):
        yield f"primary_metric_ratio {low!r} to {high!r} (delta {delta!r}) does not fit the ratio {ratio!r}"

"""determinism_repeats.json in a pack: it must fit the campaign, itself and the report that was repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack_campaign import MODEL, Campaign

from evpack.errors import EvidenceError
from evpack.evaluation.report import report_digest
from evpack.files import read_json, write_json
from evpack.pack import layout
from evpack.pack.build import build
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_pack


@pytest.fixture
def repeated(tmp_path: Path) -> Campaign:
    """A campaign whose first clean edit was evaluated twice more, to the same report."""
    campaign = Campaign(tmp_path / "run", repeats=2).write()
    report = read_json(campaign.model.report("quant_clean", "clean", 1) / layout.REPORT)
    ratio = report["primary_metric"]["ratio_vs_baseline"]
    document = {
        "schema": "evpack_determinism_repeats_v1",
        "requested": 2,
        "completed": 2,
        "errors": [],
        "mode": campaign.settings.determinism,
        "suite": "fixture",
        "model_id": MODEL.id,
        "run": 1,
        "edit_name": "quant_clean",
        "cert_hashes_match": True,
        "cert_hashes": [report_digest(report)] * 3,
        "primary_metric_ratio": {"min": ratio, "max": ratio, "delta": 0.0},
        "generated_at": "2026-01-01T00:00:00Z",
    }
    write_json(campaign.run.analysis / "determinism_repeats.json", document)
    return campaign.finish()


def test_repeats_that_fit_are_packed_and_verified(repeated: Campaign, signing_key: Path) -> None:
    built = build(repeated.run, key=signing_key, html=False)
    assert verify_pack(built.path, Trust(frozenset({str(built.fingerprint)})), Demands(strict=True)).ok
    assert read_json(built.path / layout.MANIFEST)["determinism_repeats"]["cert_hashes_match"] is True


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(cert_hashes=["0" * 64] * 3),
        lambda d: d.update(cert_hashes=[*d["cert_hashes"][:2], "0" * 64]),
        lambda d: d.update(cert_hashes=d["cert_hashes"][:2]),
        lambda d: d.update(cert_hashes=[]),
        lambda d: d.update(cert_hashes_match=1),
        lambda d: d.update(errors=["repeat 1: lost"]),
        lambda d: d.update(requested=1),
        lambda d: d.update(mode="strict"),
        lambda d: d.update(edit_name="nowhere"),
        lambda d: d.update(run=[]),
        lambda d: d.update(primary_metric_ratio={"min": 1.0, "max": 1.5, "delta": 0.5}),
        lambda d: d.update(primary_metric_ratio={"min": "x"}),
    ],
)
def test_repeats_that_do_not_fit_are_refused(repeated: Campaign, change: Callable[[dict[str, Any]], None]) -> None:
    path = repeated.run.analysis / "determinism_repeats.json"
    document = read_json(path)
    change(document)
    write_json(path, document)
    with pytest.raises(EvidenceError, match="determinism_repeats"):
        build(repeated.run, key=None, html=False)

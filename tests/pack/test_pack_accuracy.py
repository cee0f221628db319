"""Campaigns that also gate on accuracy: what runs write, what the verdict says, what a verifier demands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.scenarios import Scenario
from evpack.errors import EvidenceError
from evpack.evaluation.records import WindowRecords
from evpack.files import read_json
from evpack.pack.build import build
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_pack
from tests.pack.pack_campaign import Campaign


class Counting(Campaign):
    """Its records count right predictions: of 127 tokens 50, and `lost` fewer where a clean edit was made."""

    def __init__(self, root: Path, lost: int, asked: bool = True) -> None:
        self.lost = lost
        super().__init__(root, accuracy=asked)

    def records(self, scenario: Scenario | None, run: int) -> WindowRecords:
        plain = super().records(scenario, run)
        right = 50 - (self.lost if scenario is not None else 0)
        windows = [one.model_copy(update={"correct": None if one.nll_sum is None else right}) for one in plain.windows]
        return plain.model_copy(update={"windows": tuple(windows)})


def verified(campaign: Campaign, key: Path) -> Any:
    built = build(campaign.run, key=key, html=True)
    return verify_pack(built.path, Trust(frozenset({str(built.fingerprint)})), Demands(strict=True))


def test_a_loss_of_accuracy_fails_a_clean_edit_whose_perplexity_passes(tmp_path: Path, signing_key: Path) -> None:
    words = {}
    for lost in (0, 10):
        campaign = Counting(tmp_path / f"run_{lost}", lost).write().finish()
        result = verified(campaign, signing_key)
        assert result.exit_code == 0, result.to_json()
        words[lost] = read_json(campaign.run.final_verdict)["verdict"]
        report = next(campaign.run.pack.rglob("quant_clean/**/evaluation.report.json"))
        block = read_json(report)
        assert block["secondary_metrics"][0]["outcome"] == ("reject" if lost else "accept")
        assert block["primary_metric"]["outcome"] == "accept"
        assert block["validation"]["primary_metric_acceptable"] is not bool(lost)
        assert "accuracy" in report.with_name("evaluation.html").read_text()
    assert words == {0: "PASS", 10: "FAIL"}
    assert "accuracy_reject" in campaign.run.final_verdict.with_name("scenario_signal_summary.json").read_text()


def test_a_campaign_that_asked_for_accuracy_is_not_sealed_without_it(tmp_path: Path, signing_key: Path) -> None:
    for asked, kind in ((True, Campaign), (False, Counting)):
        arguments: dict[str, Any] = {"accuracy": asked} if kind is Campaign else {"lost": 0, "asked": asked}
        campaign = kind(tmp_path / f"run_{asked}", **arguments).write().finish()
        with pytest.raises(EvidenceError, match="not what the campaign asked for"):
            build(campaign.run, key=signing_key, html=False)

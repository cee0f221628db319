"""Packs of campaigns whose configuration set limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack_campaign import Campaign

from evpack.catalog.policy import resolve_policy
from evpack.errors import EvidenceError
from evpack.pack.build import build, own_limits
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, VerifyExit, verify_pack

OVERRIDES = {"acceptance_range": {"min": 0.5, "max": 1.5}, "drift_band": [0.8, 1.25]}


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    campaign = Campaign(tmp_path / "run")
    campaign.policy = resolve_policy(campaign.settings.tier, campaign.settings.profile, OVERRIDES)
    return campaign


def test_a_verifier_must_agree_to_them(campaign: Campaign) -> None:
    campaign.plan = campaign.plan.model_copy(update={"policy_overrides": OVERRIDES})
    run = campaign.write().finish().run
    built = build(run, key=None)
    limits = own_limits(run)
    assert limits.acceptance == (0.5, 1.5)
    agreed = verify_pack(built.path, Trust(), Demands(policy=limits))
    assert not [finding for finding in agreed.findings if finding.code is VerifyExit.EVIDENCE]
    found = [finding.text for finding in verify_pack(built.path, Trust(), Demands()).findings]
    assert any("acceptance_range.max is 1.5, to be judged by is None" in text for text in found)
    assert build(run, key=None).kept


def test_limits_that_the_plan_does_not_name_are_refused(campaign: Campaign) -> None:
    with pytest.raises(EvidenceError, match=r"policy\.json: primary_metric\.acceptance_range"):
        build(campaign.write().finish().run, key=None)

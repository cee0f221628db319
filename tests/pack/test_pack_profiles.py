"""PACK_VERIFY_PROFILE and `verify --profile`: what reports must meet beyond that they follow from their records."""

from __future__ import annotations

import json
from pathlib import Path

import pack_campaign
import pack_guards
import pytest
import typer
from pack_campaign import Campaign
from typer.testing import CliRunner

from evpack.cli import verify as verify_command
from evpack.errors import EvidenceError
from evpack.files import read_json
from evpack.pack import layout
from evpack.pack.build import build
from evpack.pack.profiles import strictest
from evpack.pack.verify import Demands, verify_pack


def made(tmp_path: Path, profile: str) -> Campaign:
    return Campaign(tmp_path / "run", verify_profile=profile).write().finish()


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    verify_command.register(app)
    app.callback()(lambda: None)
    return app


@pytest.mark.parametrize("profile", ["ci", "release"])
def test_reports_that_do_as_they_must_meet_every_profile(tmp_path: Path, signing_key: Path, profile: str) -> None:
    built = build(made(tmp_path, profile).run, key=signing_key, html=False)
    assert read_json(built.path / layout.VERIFICATION)["policy_profile"] == profile
    assert verify_pack(built.path, demands=Demands(profile="release")).exit_code == 8


@pytest.mark.parametrize(
    ("scenario", "shift", "said"),
    [
        ("quant_clean", 0.4, "asks for primary_metric_acceptable"),
        ("prune_50pct_stress", 0.001, "must fail meets profile ci"),
    ],
)
def test_a_report_that_does_not_meet_the_profile_is_not_packed(
    tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, shift: float, said: str
) -> None:
    monkeypatch.setitem(pack_campaign.SHIFTS, scenario, shift)
    monkeypatch.setitem(pack_guards.MOVES, scenario, 0.0 if shift < 0.1 else 0.3)
    campaign = made(tmp_path, "ci")
    with pytest.raises(EvidenceError, match=said) as raised:
        build(campaign.run, key=signing_key, html=False)
    assert "PACK_VERIFY_PROFILE" in raised.value.what
    assert not campaign.run.pack.exists()


def test_a_verifier_may_ask_for_more_than_the_campaign_did(
    tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch, app: typer.Typer
) -> None:
    monkeypatch.setitem(pack_campaign.SHIFTS, "quant_clean", 0.4)
    pack = str(build(made(tmp_path, "dev").run, key=signing_key, html=False).path)
    value = json.loads((done := CliRunner().invoke(app, ["verify", "--json", pack])).output)
    assert (done.exit_code, value["verdict"]) == (8, "FAIL"), "a true FAIL verifies"
    value = json.loads((done := CliRunner().invoke(app, ["verify", "--json", "--profile", "ci", pack])).output)
    assert done.exit_code == 7 and {error["exit"] for error in value["errors"]} == {7}
    assert len(value["errors"]) == 3, "one for every run of the clean scenario"


def test_the_stricter_profile_counts() -> None:
    assert strictest("dev", "ci") == "ci" == strictest("ci_cpu", "small")
    assert strictest("release", "ci") == "release" and strictest("small", "dev") == "dev"

"""Comparing packs and attesting them."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from pack_campaign import SHIFTS, Campaign
from typer.testing import CliRunner

from evpack.catalog.policy import resolve_policy
from evpack.cli import attest as attest_command
from evpack.cli import diff as diff_command
from evpack.cli import verify as verify_command
from evpack.errors import BadInput
from evpack.files import read_json, write_json
from evpack.pack import keys, layout
from evpack.pack.build import BuiltPack, build


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (attest_command, diff_command, verify_command):
        command.register(app)
    return app


@pytest.fixture
def rebuilt(
    campaign: Campaign, signing_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., BuiltPack]:
    """A pack of the same campaign with other mean differences for some scenarios."""

    def make(**shifts: float) -> BuiltPack:
        for name, value in shifts.items():
            monkeypatch.setitem(SHIFTS, name, value)
            scenario = campaign.plan.scenario(name)
            for step in campaign.plan.steps:
                if step.scenario == name:
                    for run in step.runs:
                        campaign.report(scenario, run)
        campaign.finish()
        return build(campaign.run, key=signing_key, out=tmp_path / "new")

    return make


def difference(app: typer.Typer, old: BuiltPack, new: BuiltPack) -> tuple[int, dict[str, Any]]:
    args = ["diff", "--json", "--expected-fingerprint", str(old.fingerprint), str(old.path), str(new.path)]
    done = CliRunner().invoke(app, args)
    return done.exit_code, json.loads(done.output)


def test_a_pack_does_not_differ_from_itself(app: typer.Typer, good_pack: BuiltPack) -> None:
    code, result = difference(app, good_pack, good_pack)
    assert (code, result["regressions"], result["same_evidence"]) == (0, [], True)
    assert not any(result[name] for name in ("models", "source", "environment", "settings", "policy"))
    shift = next(cell["shift"] for cell in result["cells"] if cell["scenario"] == "quant_clean")
    assert (shift["ratio"], shift["windows"]) == (1.0, 96)


def test_packs_of_other_limits_are_compared_each_by_its_own(
    app: typer.Typer, good_pack: BuiltPack, signing_key: Path, tmp_path: Path
) -> None:
    """As before and after a release with other tier data."""
    overrides = {"acceptance_range": {"max": 1.003}}
    other = Campaign(tmp_path / "run")
    other.policy = resolve_policy(other.settings.tier, other.settings.profile, overrides)
    other.plan = other.plan.model_copy(update={"policy_overrides": overrides})
    built = build(other.write().finish().run, key=signing_key)
    args = ["diff", "--expected-fingerprint", str(good_pack.fingerprint), str(good_pack.path), str(built.path)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 1 and "regression      verdict PASS became FAIL" in done.output
    assert "policy: primary_metric.acceptance_range.max: None -> 1.003" in done.output
    assert f"{built.path}: judged by limits of its own" in done.output
    limits = tmp_path / "policy.json"
    write_json(limits, other.policy.to_json())
    strict = CliRunner().invoke(app, [*args, "--policy", str(limits)])
    assert strict.exit_code == 7 and f"{good_pack.path} does not verify" in strict.output


def test_a_ratio_that_rose_is_a_regression_though_it_still_passes(
    app: typer.Typer, good_pack: BuiltPack, rebuilt: Callable[..., BuiltPack]
) -> None:
    code, result = difference(app, good_pack, rebuilt(quant_clean=SHIFTS["quant_clean"] + 0.02))
    cell = next(cell for cell in result["cells"] if cell["scenario"] == "quant_clean")
    assert cell["shift"]["ratio"] == pytest.approx(math.exp(0.02))
    assert (code, len(result["regressions"])) == (1, 1) and "ratio rose" in result["regressions"][0]
    assert (result["old"]["verdict"], result["new"]["verdict"]) == ("PASS", "PASS")


def test_a_ratio_that_fell_is_none(app: typer.Typer, good_pack: BuiltPack, rebuilt: Callable[..., BuiltPack]) -> None:
    code, result = difference(app, good_pack, rebuilt(prune_clean=0.0))
    shift = next(cell["shift"] for cell in result["cells"] if cell["scenario"] == "prune_clean")
    assert code == 0 and shift["display_ci"][1] < 1


def test_a_verdict_that_flipped_is_a_regression_with_its_cells(
    app: typer.Typer, good_pack: BuiltPack, rebuilt: Callable[..., BuiltPack]
) -> None:
    code, result = difference(app, good_pack, rebuilt(quant_clean=0.5))
    assert code == 1 and result["regressions"][0] == "verdict PASS became FAIL"
    assert "passed 3/3 became passed 0/3" in result["regressions"][1]
    cell = next(cell for cell in result["cells"] if cell["scenario"] == "quant_clean")
    assert "primary_metric" in cell["signals_new"]


def test_a_cell_that_is_gone_is_a_regression(
    app: typer.Typer, good_pack: BuiltPack, campaign: Campaign, rebuilt: Callable[..., BuiltPack]
) -> None:
    shutil.rmtree(campaign.model.report("nan_injection", "error_injection", 1))
    code, result = difference(app, good_pack, rebuilt())
    assert code == 1 and any("no report" in text for text in result["regressions"])


def test_provenance_that_changed_is_listed(
    app: typer.Typer, good_pack: BuiltPack, campaign: Campaign, rebuilt: Callable[..., BuiltPack], tmp_path: Path
) -> None:
    write_json(campaign.run.source_repo, read_json(campaign.run.source_repo) | {"describe": "v1"})
    new = rebuilt()
    code, result = difference(app, good_pack, new)
    assert (code, result["source"]) == (0, {"describe": ["v0", "v1"]})
    args = ["diff", "--html", str(tmp_path / "d.html"), str(good_pack.path), str(new.path)]
    done = CliRunner().invoke(app, args)
    page = (tmp_path / "d.html").read_text()
    assert done.exit_code == 0 and "source: describe" in done.output and "Two packs" in page
    assert str(new.fingerprint) in done.output and str(new.fingerprint) in page


def test_a_pack_that_does_not_verify_is_not_compared(app: typer.Typer, good_pack: BuiltPack, tmp_path: Path) -> None:
    shutil.copytree(good_pack.path, tmp_path / "bad")
    (tmp_path / "bad" / layout.README).write_text("x")
    assert CliRunner().invoke(app, ["diff", str(good_pack.path), str(tmp_path / "bad")]).exit_code == 6
    assert CliRunner().invoke(app, ["diff", str(good_pack.path), str(tmp_path / "none")]).exit_code == 3


# --- attestations ---------------------------------------------------------------------------------
@pytest.fixture
def envelope(app: typer.Typer, good_pack: BuiltPack, signing_key: Path, tmp_path: Path) -> Path:
    path = tmp_path / "attestation.json"
    args = ["attest", str(good_pack.path), "--signing-key", str(signing_key), "--out", str(path)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    return path


def verified(app: typer.Typer, built: BuiltPack, envelope: Path) -> int:
    args = ["verify", "--expected-fingerprint", str(built.fingerprint), "--attestation", str(envelope)]
    return CliRunner().invoke(app, [*args, str(built.path)]).exit_code


def test_an_attestation_says_what_the_pack_says(app: typer.Typer, good_pack: BuiltPack, envelope: Path) -> None:
    value = read_json(envelope)
    statement = json.loads(base64.b64decode(value["payload"]))
    assert value["payloadType"] == "application/vnd.in-toto+json"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["subject"][0]["digest"]["sha256"] == good_pack.manifest_digest.removeprefix("sha256:")
    assert statement["predicate"]["result"] == "PASSED" and statement["predicate"]["failedTests"] == []
    assert "example__tiny/quant_clean" in statement["predicate"]["passedTests"]
    assert verified(app, good_pack, envelope) == 0


def test_a_pack_with_limits_of_its_own_is_attested_by_who_agrees(
    app: typer.Typer, signing_key: Path, tmp_path: Path
) -> None:
    overrides = {"acceptance_range": {"max": 1.5}}
    other = Campaign(tmp_path / "run")
    other.policy = resolve_policy(other.settings.tier, other.settings.profile, overrides)
    other.plan = other.plan.model_copy(update={"policy_overrides": overrides})
    built = build(other.write().finish().run, key=signing_key)
    args = ["attest", str(built.path), "--signing-key", str(signing_key)]
    assert CliRunner().invoke(app, args).exit_code == 7
    policy = ["--policy", str(other.run.policy)]
    done = CliRunner().invoke(app, [*args, *policy])
    assert done.exit_code == 0, done.output
    envelope = built.path.with_name("evidence_pack.attestation.json")
    pin = ["--expected-fingerprint", str(built.fingerprint), "--attestation", str(envelope)]
    assert CliRunner().invoke(app, ["verify", *policy, *pin, str(built.path)]).exit_code == 0


def test_an_attestation_replaces_nothing_but_an_attestation(
    app: typer.Typer, good_pack: BuiltPack, signing_key: Path, envelope: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    shutil.copy(signing_key, key)
    args = ["attest", str(good_pack.path), "--signing-key", str(key), "--out"]
    done = CliRunner().invoke(app, [*args, str(key)])
    assert isinstance(done.exception, BadInput) and "no attestation" in done.exception.what
    assert key.read_bytes() == signing_key.read_bytes()
    assert CliRunner().invoke(app, [*args, str(envelope)]).exit_code == 0


def test_attesting_makes_no_key(
    app: typer.Typer, good_pack: BuiltPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, ["attest", str(good_pack.path), "--out", str(tmp_path / "a.json")])
    assert isinstance(done.exception, BadInput) and "--signing-key" in str(done.exception)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda v: v | {"payload": base64.b64encode(base64.b64decode(v["payload"]) + b" ").decode()}, 5),
        (lambda v: v | {"payloadType": "text/plain"}, 5),
        (lambda v: v | {"signatures": []}, 5),
        (lambda v: v | {"signatures": v["signatures"] * 2}, 5),
        (lambda v: {"payload": v["payload"]}, 5),
        (lambda v: [], 5),
    ],
)
def test_an_attestation_that_was_changed_is_refused(
    app: typer.Typer, good_pack: BuiltPack, envelope: Path, change: Callable[[Any], Any], code: int
) -> None:
    write_json(envelope, change(read_json(envelope)))
    assert verified(app, good_pack, envelope) == code


def test_an_attestation_of_another_pack_is_refused(
    app: typer.Typer, envelope: Path, rebuilt: Callable[..., BuiltPack]
) -> None:
    assert verified(app, rebuilt(quant_clean=0.002), envelope) == 7


def test_only_the_sealer_attests(app: typer.Typer, good_pack: BuiltPack, tmp_path: Path) -> None:
    keys.write_keypair(tmp_path / "stranger")
    args = ["attest", str(good_pack.path), "--signing-key", str(tmp_path / "stranger"), "--out", str(tmp_path / "a")]
    assert CliRunner().invoke(app, args).exit_code == 5 and not (tmp_path / "a").exists()


def test_an_attestation_never_enters_the_pack(app: typer.Typer, good_pack: BuiltPack, signing_key: Path) -> None:
    args = ["attest", str(good_pack.path), "--signing-key", str(signing_key), "--out", str(good_pack.path / "a")]
    assert isinstance(CliRunner().invoke(app, args).exception, BadInput)

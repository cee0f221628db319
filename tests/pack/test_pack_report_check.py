"""`evpack report verify`: one report in a run directory or a pack, by the pack's own recomputation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack_campaign import Campaign
from typer.testing import CliRunner

from evpack.cli.main import build_app
from evpack.errors import BadInput, MissingFile
from evpack.files import pretty_json
from evpack.pack.build import BuiltPack
from evpack.pack.report_check import check_one, document

CLEAN = "example__tiny/reports/quant_clean/run_1"
STRESS = "example__tiny/reports/prune_50pct_stress/run_1"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(pretty_json(value))


@pytest.mark.parametrize("profile", ["dev", "ci"])
def test_a_sound_report_verifies_where_it_was_made(finished: Campaign, profile) -> None:
    check = check_one(finished.run.root / CLEAN, profile)
    assert (check.reason, check.exit_code, check.problems) == ("ok", 0, ())
    result = document([check])["results"][0]
    assert result["ok"] and result["recompute"]["ok"] and result["ratio_vs_baseline"] > 1


def test_release_asks_for_every_guard(finished: Campaign) -> None:
    assert check_one(finished.run.root / CLEAN / "evaluation.report.json", "release").problems == ()
    broken = finished.run.root / "example__tiny/reports/errors/nan_injection"
    assert check_one(broken, "dev").exit_code == 0
    check = check_one(broken, "release")
    assert check.exit_code == 1
    assert "profile release asks for invariants_pass, the report has False" in check.unmet


def test_a_stress_report_follows_but_does_not_pass(finished: Campaign) -> None:
    assert check_one(finished.run.root / STRESS, "dev").exit_code == 0
    check = check_one(finished.run.root / STRESS, "ci")
    assert check.exit_code == 1 and "primary_metric_acceptable" in check.unmet[0]


def test_a_report_in_a_pack_verifies(good_pack: BuiltPack) -> None:
    assert check_one(good_pack.path / "reports/example__tiny/quant_clean/run_1", "ci").exit_code == 0


def test_a_pack_without_its_plan_is_not_readable(good_pack: BuiltPack, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(good_pack.path, pack)
    (pack / "state" / "plan.json").unlink()
    done = CliRunner().invoke(build_app(), ["report", "verify", str(pack / "reports/example__tiny/quant_clean/run_1")])
    assert done.exit_code == 2 and "plan.json" in done.output


@pytest.mark.parametrize("text", ["5", "[]", "{}"])
@pytest.mark.parametrize(
    "name",
    [
        *("manifest.json", "state/plan.json", "state/settings.json", "state/policy.json", "state/scenarios.json"),
        *("state/model_revisions.json", "state/tuned_edit_params.json", "metadata/environment.json"),
        *("metadata/source_repo.json", "state/models/example__tiny/model_profile.json"),
        "reports/example__tiny/quant_clean/run_1/records.json",
    ],
)
def test_anything_in_a_pack_gives_an_outcome(good_pack: BuiltPack, tmp_path: Path, name: str, text: str) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(good_pack.path, pack)
    (pack / name).write_text(text)
    done = CliRunner().invoke(build_app(), ["report", "verify", str(pack / "reports/example__tiny/quant_clean/run_1")])
    assert done.exit_code in (0, 1, 2) and isinstance(done.exception, SystemExit | None), done.output


def test_a_manifest_that_is_a_link_is_refused(good_pack: BuiltPack, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(good_pack.path, pack)
    (pack / "manifest.json").rename(tmp_path / "elsewhere")
    (pack / "manifest.json").symlink_to(tmp_path / "elsewhere")
    done = CliRunner().invoke(build_app(), ["report", "verify", str(pack / "reports/example__tiny/quant_clean/run_1")])
    assert done.exit_code == 2 and "manifest.json is no file" in done.output


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("evaluation.report.json", lambda r: r["primary_metric"].update(ratio_vs_baseline=1.0), "ratio_vs_baseline"),
        ("evaluation.report.json", lambda r: r["primary_metric"]["pooled"].update(ci=[0.0, 0.1]), "pooled"),
        ("evaluation.report.json", lambda r: r["validation"].update(primary_metric_acceptable=False), "validation"),
        ("records.json", lambda r: r["windows"][0].update(nll_sum=1.0), "records"),
        ("runtime.manifest.json", lambda r: r["report"].update(sha256="0" * 64), "another report"),
    ],
)
def test_what_does_not_follow_is_named(campaign: Campaign, name: str, change, said: str) -> None:
    edit(campaign.run.root / CLEAN / name, change)
    check = check_one(campaign.run.root / CLEAN, "dev")
    assert check.exit_code == 1 and any(said in line for line in check.problems)


def test_a_report_that_cannot_be_read_is_malformed(campaign: Campaign) -> None:
    (campaign.run.root / CLEAN / "evaluation.report.json").write_text("{")
    check = check_one(campaign.run.root / CLEAN, "dev")
    assert (check.reason, check.exit_code) == ("malformed", 2) and check.problems


def test_reports_elsewhere_are_refused(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such report"):
        check_one(tmp_path, "dev")
    shutil.copytree(campaign.run.root / CLEAN, tmp_path / "alone")
    with pytest.raises(BadInput, match="no run directory and no pack"):
        check_one(tmp_path / "alone", "dev")
    shutil.copytree(campaign.run.root / CLEAN, campaign.run.root / "example__tiny/reports/quant_clean/run_9")
    with pytest.raises(BadInput, match="asks for no report"):
        check_one(campaign.run.root / "example__tiny/reports/quant_clean/run_9", "dev")


def test_the_command_checks_several_and_the_worst_decides(campaign: Campaign) -> None:
    root = campaign.run.root
    edit(root / STRESS / "records.json", lambda r: r["windows"][0].update(nll_sum=1.0))
    run = CliRunner().invoke(build_app(), ["report", "verify", str(root / CLEAN), str(root / STRESS), "--json"])
    found = json.loads(run.stdout)
    assert run.exit_code == 1 == found["resolution"]["exit_code"]
    assert [result["ok"] for result in found["results"]] == [True, False]
    plain = CliRunner().invoke(build_app(), ["report", "verify", str(root / CLEAN)])
    assert plain.exit_code == 0 and plain.stdout.startswith("ok")

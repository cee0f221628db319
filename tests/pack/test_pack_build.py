"""Building: what goes in, what never does, and that nothing half-made is ever visible."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pack_campaign import SHIFTS, SOURCE, Campaign
from pack_guards import Model

from evpack.errors import BadInput, DiskFull, EvidenceError, IntegrityError
from evpack.files import pretty_json, read_json, sha256_bytes, tree_digests, write_json
from evpack.pack import build as building
from evpack.pack import inventory, layout
from evpack.pack.build import build
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_pack
from evpack.plan.model import StepType


def strict(pack: Path, fingerprint: str | None) -> Any:
    return verify_pack(pack, Trust(frozenset({str(fingerprint)})), Demands(strict=True))


def test_a_pack_holds_the_evidence_and_no_weights(campaign: Campaign, signing_key: Path) -> None:
    (campaign.model.windows / "tokens.safetensors").write_bytes(b"tokens")
    (campaign.model.variant("quant_clean") / "delta.safetensors").write_bytes(b"weights")
    built = build(campaign.run, key=signing_key)
    names = set(tree_digests(built.path))
    assert not any(name.endswith(".safetensors") for name in names)
    model = "example__tiny"
    assert {
        *("README.md", "manifest.json", "checksums.sha256", "manifest.signature.json"),
        *(
            "results/final_verdict.json",
            "results/final_verdict.txt",
            "results/final_verdict.html",
            "results/memory.json",
        ),
        *("results/category_summary.json", "results/scenario_signal_summary.json", "results/verification_summary.json"),
        *("state/plan.json", "state/settings.json", "state/policy.json", "state/scenarios.json"),
        *("state/model_revisions.json", "state/tuned_edit_params.json"),
        *("metadata/source_repo.json", "metadata/environment.json"),
        f"state/presets/calibrated_preset_{model}.yaml",
        f"state/models/{model}/schedule.json",
        f"state/models/{model}/variants/nan_injection.json",
        f"reports/{model}/calibration/run_3/records.json",
        f"reports/{model}/quant_clean/run_3/evaluation.report.json",
        f"reports/{model}/quant_clean/run_3/runtime.manifest.json",
        f"reports/{model}/quant_clean/run_3/records.json",
        f"reports/{model}/errors/nan_injection/evaluation.report.json",
    } <= names


@pytest.mark.parametrize("place", ["extra.json", "calibrated_preset_x.json", "run_1"])
def test_a_link_that_a_step_left_takes_no_file_of_this_machine_along(
    place: str, campaign: Campaign, signing_key: Path, tmp_path: Path
) -> None:
    model, run = campaign.model, campaign.run
    if place == "run_1":  # the directory instead of a file in it
        reports = model.report("quant_clean", "clean", 1)
        reports.rename(tmp_path / place)
        reports.symlink_to(tmp_path / place)
    else:
        parent = run.presets if place.startswith("calibrated") else model.report("quant_clean", "clean", 1)
        (parent / place).symlink_to(signing_key)
    with pytest.raises(IntegrityError, match="a link"):
        build(run, key=signing_key)
    assert not run.pack.exists()


def test_the_manifest_says_what_the_format_asks_for(campaign: Campaign, signing_key: Path) -> None:
    built = build(campaign.run, key=signing_key)
    manifest = read_json(built.path / layout.MANIFEST)
    files = tree_digests(built.path)
    assert manifest["format"] == "evidence-pack-v1"
    assert manifest["checksums_sha256_digest"] == files["checksums.sha256"]
    assert manifest["subject"] == {
        "name": "final_verdict",
        "path": layout.VERDICT,
        "digest": f"sha256:{files[layout.VERDICT]}",
    }
    assert manifest["artifacts"] == sorted(files.keys() - set(layout.CONTROL))
    assert manifest["signing_key_fingerprint"] == built.fingerprint
    assert (manifest["evidence_level"], manifest["network_mode"], manifest["suite"]) == ("medium", "offline", "fixture")
    assert manifest["verification"] == {
        "clean_reports": 8,
        "error_injection_reports": 2,
        "failed_reports": 0,
        "policy_profile": "dev",
    }
    assert manifest["run_dir"] == "run", "a label, not a path of this machine"
    assert manifest["invocation"]["config_source"]["commit"] == "0" * 40
    assert built.manifest_digest == f"sha256:{files[layout.MANIFEST]}"
    assert "supersedes" not in manifest


def test_the_same_evidence_keeps_the_pack(campaign: Campaign, signing_key: Path) -> None:
    first = build(campaign.run, key=signing_key)
    before = tree_digests(first.path)
    second = build(campaign.run, key=signing_key)
    assert second.kept and second.manifest_digest == first.manifest_digest
    assert tree_digests(first.path) == before


@pytest.mark.parametrize("damage", ["", "reports/final_verdict.json", "reports/category_summary.json"])
def test_a_verdict_compiled_again_keeps_the_pack_where_nothing_changed(
    campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A resume compiles in any case, and later than before."""
    first = build(campaign.run, key=signing_key)
    before = tree_digests(first.path)
    for day in ("2031-01-01", "2031-01-02"):
        monkeypatch.setattr("evpack.steps.compile_verdict.utc_now", lambda day=day: f"{day}T00:00:00Z")
        if damage:
            (campaign.run.root / damage).write_text("{}")
        again = build(campaign.finish().run, key=signing_key)
        assert again.kept == (damage != "reports/final_verdict.json")
    assert tree_digests(first.path) == before or not again.kept


def test_a_verdict_over_a_newer_report_is_a_new_one(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that was cleared and came out alike: the verdict says the same, of other evidence."""
    first = read_json(campaign.run.final_verdict)
    report = next(campaign.run.root.rglob(layout.REPORT))
    value = read_json(report)
    write_json(report, value | {"artifacts": {**value["artifacts"], "generated_at": "2031-01-01T00:00:00Z"}})
    monkeypatch.setattr("evpack.steps.compile_verdict.utc_now", lambda: "2031-01-01T00:00:01Z")
    second = read_json(campaign.finish().run.final_verdict)
    assert second == first | {"timestamp": "2031-01-01T00:00:01Z"}


@pytest.mark.parametrize("stated", ["not a time", "2031-01-01", None, 7])
def test_a_time_that_is_none_is_not_kept(campaign: Campaign, stated: object) -> None:
    value = read_json(campaign.run.final_verdict)
    write_json(campaign.run.final_verdict, value | {"timestamp": stated})
    assert campaign.finish() and read_json(campaign.run.final_verdict)["timestamp"] != stated


def test_other_evidence_supersedes_the_pack_and_names_it(campaign: Campaign, signing_key: Path) -> None:
    first = build(campaign.run, key=signing_key)
    before = tree_digests(first.path)
    write_json(campaign.run.analysis / "memory.json", {"peak": 2})
    second = build(campaign.run, key=signing_key)
    assert not second.kept and second.superseded is not None
    old = second.path.with_name(second.superseded)
    assert old.name.startswith("evidence_pack.superseded-") and tree_digests(old) == before
    assert read_json(second.path / layout.MANIFEST)["supersedes"] == {
        "name": old.name,
        "manifest_digest": first.manifest_digest,
    }
    assert strict(second.path, second.fingerprint).ok and strict(old, first.fingerprint).ok


def test_another_signer_or_a_damaged_pack_supersedes_too(campaign: Campaign, signing_key: Path, tmp_path: Path) -> None:
    first = build(campaign.run, key=signing_key)
    unsigned = build(campaign.run, key=None)
    assert unsigned.superseded and unsigned.fingerprint is None
    assert verify_pack(unsigned.path).exit_code == 8
    (unsigned.path / "README.md").write_text("changed")
    third = build(campaign.run, key=signing_key)
    assert third.superseded not in (None, unsigned.superseded)
    assert third.fingerprint == first.fingerprint and strict(third.path, third.fingerprint).ok


@pytest.mark.parametrize("how", ["hidden file", "empty directory", "link"])
def test_a_standing_pack_that_does_not_verify_is_not_kept(campaign: Campaign, signing_key: Path, how: str) -> None:
    first = build(campaign.run, key=signing_key)
    spoiled = {
        "hidden file": lambda path: (path / ".DS_Store").write_bytes(b""),
        "empty directory": lambda path: (path / "new").mkdir(),
        "link": lambda path: (path / "new").symlink_to(path / layout.README),
    }
    spoiled[how](first.path)
    again = build(campaign.run, key=signing_key)
    assert not again.kept and again.superseded and strict(again.path, again.fingerprint).ok


@pytest.mark.parametrize(("limit", "less"), [("MAX_PACK_BYTES", 2000), ("MAX_PACK_BYTES", 100_000), ("MAX_FILES", 1)])
def test_nothing_is_sealed_that_a_verifier_refuses_for_its_size(
    campaign: Campaign, signing_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, less: int
) -> None:
    found = inventory.load(build(campaign.run, key=signing_key, out=tmp_path / "first").path)
    size = {"MAX_PACK_BYTES": found.total, "MAX_FILES": len(found.files)}[limit]
    monkeypatch.setattr(inventory, limit, size - less)
    with pytest.raises(EvidenceError, match="beyond the limit"):
        build(campaign.run, key=signing_key)
    assert not campaign.run.pack.exists()


def test_a_file_that_is_too_large_is_named(
    campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "MAX_FILE_BYTES", 20_000)
    with pytest.raises(EvidenceError, match=r"evaluation.*more than the limit of 20000"):
        build(campaign.run, key=signing_key)


@pytest.mark.parametrize("what", ["file", "directory", "web app", "web app with sums", "link"])
def test_something_else_at_the_target_is_never_touched(
    campaign: Campaign, signing_key: Path, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_text("mine")
    elif what != "link":
        target.mkdir()
        (target / "mine").write_text("mine")
        if what != "directory":
            (target / layout.MANIFEST).write_text('{"name": "my web app"}')
        if what == "web app with sums":
            (target / layout.CHECKSUMS).write_text("")
    else:
        target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput):
        build(campaign.run, key=signing_key, out=target)
    assert [path.name for path in tmp_path.glob(".target*")] == []


def test_an_empty_directory_may_become_the_pack(campaign: Campaign, signing_key: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    built = build(campaign.run, key=signing_key, out=target)
    assert built.path == target and strict(target, built.fingerprint).ok


@pytest.mark.parametrize("stage", ["collect", "recheck", "readme", "_seal", "_free_name", "fsync_tree", "_publish"])
def test_a_full_disk_at_any_stage_leaves_the_old_pack(
    campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    first = build(campaign.run, key=signing_key)
    before = tree_digests(first.path)
    write_json(campaign.run.analysis / "memory.json", {"peak": 2})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(building, stage, full)
        with pytest.raises(DiskFull):
            build(campaign.run, key=signing_key)
    assert tree_digests(first.path) == before
    assert [path.name for path in campaign.run.root.iterdir() if path.name.startswith((".", "evidence_pack."))] == []
    assert build(campaign.run, key=signing_key).superseded


@pytest.mark.parametrize("room_for", [0, 1, 40, 80, -1])
def test_a_disk_that_fills_up_between_two_files_leaves_the_old_pack(
    campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    first = build(campaign.run, key=signing_key)
    before = tree_digests(first.path)
    write_json(campaign.run.analysis / "memory.json", {"peak": 2})
    room, written = range(len(before))[room_for], []

    def add(stage: object, name: str, data: bytes) -> None:
        if len(written) == room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(name)
        really(stage, name, data)  # type: ignore[arg-type]  # the stage it is called on

    really = building._Stage.add
    monkeypatch.setattr(building._Stage, "add", add)
    with pytest.raises(DiskFull):
        build(campaign.run, key=signing_key)
    assert tree_digests(first.path) == before
    assert [path.name for path in campaign.run.root.iterdir() if path.name.startswith((".", "evidence_pack."))] == []


def test_half_a_page_is_not_sealed(campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(stage: object, name: str, data: bytes) -> None:
        really(stage, name, data[: len(data) // 2] if name == layout.PAGE else data)  # type: ignore[arg-type]
        if name == layout.PAGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    really = building._Stage.add
    monkeypatch.setattr(building._Stage, "add", add)
    with pytest.raises(DiskFull):
        build(campaign.run, key=signing_key)
    assert not campaign.run.pack.exists()


def test_leftovers_of_a_killed_build_are_swept(campaign: Campaign, signing_key: Path) -> None:
    left = campaign.run.root / ".evidence_pack.123-abc.tmp"
    left.mkdir()
    (left / "manifest.json").write_text("{}")
    build(campaign.run, key=signing_key)
    assert not left.exists()


@pytest.mark.parametrize(("target", "other"), [("pack[1]", "pack1"), ("pack", "pack.v2"), ("p*", "pack")])
def test_leftovers_are_those_of_the_target_itself(
    campaign: Campaign, signing_key: Path, tmp_path: Path, target: str, other: str
) -> None:
    mine, theirs = (tmp_path / f".{name}.123-abc.tmp" for name in (target, other))
    for left in (mine, theirs):
        left.mkdir()
    build(campaign.run, key=signing_key, out=tmp_path / target)
    assert not mine.exists() and theirs.exists()


def test_a_failed_campaign_is_packed_and_its_pack_verifies(
    campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(campaign.model.root / "reports" / "prune_50pct_stress")
    monkeypatch.setitem(SHIFTS, "prune_50pct_stress", 0.001)
    for run in (1, 2):
        campaign.report(campaign.plan.scenario("prune_50pct_stress"), run)
    campaign.finish()
    built = build(campaign.run, key=signing_key)
    result = strict(built.path, built.fingerprint)
    assert (result.exit_code, result.verdict) == (0, "FAIL")


def test_an_incomplete_campaign_is_packed_and_its_pack_verifies(campaign: Campaign, signing_key: Path) -> None:
    shutil.rmtree(campaign.model.report("scale_explosion", "error_injection", 1))
    campaign.finish()
    built = build(campaign.run, key=signing_key)
    result = strict(built.path, built.fingerprint)
    assert (result.exit_code, result.verdict, result.reports) == (0, "INCOMPLETE", 9)


def test_an_unreadable_report_is_packed_as_it_is_and_counted(campaign: Campaign, signing_key: Path) -> None:
    report = campaign.model.report("quant_clean", "clean", 2) / layout.REPORT
    report.write_bytes(b"half a rep")
    campaign.finish()
    built = build(campaign.run, key=signing_key)
    result = strict(built.path, built.fingerprint)
    assert (result.exit_code, result.verdict, built.evidence_level) == (0, "INCOMPLETE", "low")
    assert any("not usable" in warning for warning in result.warnings)


def test_a_campaign_without_any_report_is_packed(campaign: Campaign, signing_key: Path) -> None:
    shutil.rmtree(campaign.model.root)
    campaign.finish()
    built = build(campaign.run, key=signing_key)
    result = strict(built.path, built.fingerprint)
    assert (result.exit_code, result.verdict, result.evidence_level) == (0, "INCOMPLETE", "low")


def test_evidence_that_contradicts_itself_is_not_sealed(campaign: Campaign, signing_key: Path) -> None:
    report = campaign.model.report("quant_clean", "clean", 2) / layout.REPORT
    value = json.loads(report.read_bytes())
    value["primary_metric"]["ratio_vs_baseline"] = 0.9
    report.write_bytes(pretty_json(value))
    with pytest.raises(EvidenceError, match="not consistent"):
        build(campaign.run, key=signing_key)
    assert not campaign.run.pack.exists()


def test_a_verdict_older_than_its_reports_is_not_sealed(campaign: Campaign, signing_key: Path) -> None:
    shutil.rmtree(campaign.model.report("scale_explosion", "error_injection", 1))
    with pytest.raises(EvidenceError, match="does not follow"):
        build(campaign.run, key=signing_key)


@pytest.mark.parametrize("missing", ["reports/final_verdict.json", "state/policy.json", "state/source_repo.json"])
def test_what_a_pack_cannot_do_without_is_named(campaign: Campaign, signing_key: Path, missing: str) -> None:
    (campaign.run.root / missing).unlink()
    with pytest.raises(BadInput, match=Path(missing).name):
        build(campaign.run, key=signing_key)


def test_an_open_key_seals_nothing(campaign: Campaign, signing_key: Path, tmp_path: Path) -> None:
    key = tmp_path / "open"
    shutil.copy(signing_key, key)
    key.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        build(campaign.run, key=key)
    assert not campaign.run.pack.exists()


def test_no_key_material_enters_a_pack(campaign: Campaign, signing_key: Path) -> None:
    built = build(campaign.run, key=signing_key)
    secret = signing_key.read_text().splitlines()[1].encode()
    content = b"".join(path.read_bytes() for path in built.path.rglob("*") if path.is_file())
    assert secret not in content and b"PRIVATE" not in content


def test_pages_are_self_contained_and_linked(campaign: Campaign, signing_key: Path) -> None:
    built = build(campaign.run, key=signing_key)
    page = (built.path / layout.PAGE).read_text()
    assert "PASS" in page and "prune_50pct_stress" in page and str(built.fingerprint) in page
    assert page.count('class="plot"') == 3, "ratios, weights, activations"
    pages = list(built.path.rglob("*.html"))
    assert len(pages) == 1 + 10, "one for the pack, one per report"
    for path in pages:
        text = path.read_text()
        assert "<script" not in text and "src=" not in text
        assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "").replace(
            str(SOURCE["uri"]), ""
        )
        for link in re.findall('href="([^"]+)"', text):
            assert (path.parent / link).resolve().is_file(), link


def test_html_can_be_left_out_and_its_failure_is_a_warning(
    campaign: Campaign, signing_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build(campaign.run, key=signing_key, html=False)
    assert not (plain.path / layout.PAGE).exists() and not any("HTML" in text for text in plain.warnings)

    def broken(**_: object) -> str:
        raise RuntimeError("no template")

    monkeypatch.setattr("evpack.render.page.render_pack", broken)
    assert "no HTML page: RuntimeError: no template" in build(campaign.run, key=signing_key).warnings


def test_the_steps_seal_with_the_deployment_key_and_verify_against_it(campaign: Campaign) -> None:
    from evpack.steps.build_pack import build_pack
    from evpack.steps.verify_pack import verify_pack as verify_step

    published = build_pack(campaign.context(StepType.BUILD_PACK))
    assert published == [campaign.run.reports / "evidence_pack.json", campaign.run.pack]
    [outcome] = verify_step(campaign.context(StepType.VERIFY_PACK))
    value = read_json(outcome)
    assert outcome == campaign.run.reports / "pack_verification.json"
    assert (value["exit"], value["ok"], value["verdict"], value["authenticity"]) == (0, True, "PASS", "pinned")
    assert (campaign.run.root.parent / "home" / "keys" / "signing_key.pub.pem").is_file()


def test_the_steps_honour_pack_dir_signing_off_and_html_off(campaign: Campaign, tmp_path: Path) -> None:
    from evpack.steps.build_pack import build_pack
    from evpack.steps.verify_pack import verify_pack as verify_step

    changes = {"pack_dir": str(tmp_path / "away"), "sign_manifest": False, "skip_html": True}
    assert build_pack(campaign.context(StepType.BUILD_PACK, **changes)) == [campaign.run.reports / "evidence_pack.json"]
    [outcome] = verify_step(campaign.context(StepType.VERIFY_PACK, **changes))
    assert read_json(outcome)["exit"] == 8
    assert not (tmp_path / "away" / layout.PAGE).exists()


def test_a_campaign_may_run_without_a_pack_and_be_packed_later(
    campaign: Campaign, signing_key: Path, tmp_path: Path
) -> None:
    from evpack.steps.build_pack import check_pack

    changes = {"build_pack": False, "signing_key": str(tmp_path / "no key"), "pack_dir": str(tmp_path / "away")}
    check_pack(campaign.settings.model_copy(update=changes), campaign.run)
    built = build(campaign.run, key=signing_key)
    assert strict(built.path, built.fingerprint).exit_code == 0


def test_a_damaged_pack_is_an_outcome_of_the_step(campaign: Campaign, signing_key: Path) -> None:
    from evpack.steps.build_pack import build_pack
    from evpack.steps.verify_pack import verify_pack as verify_step

    changes = {"signing_key": str(signing_key)}
    build_pack(campaign.context(StepType.BUILD_PACK, **changes))
    report = next(campaign.run.pack.rglob(layout.REPORT))
    report.write_bytes(report.read_bytes().replace(b"0", b"1", 1))
    [outcome] = verify_step(campaign.context(StepType.VERIFY_PACK, **changes))
    assert (read_json(outcome)["exit"], read_json(outcome)["ok"]) == (6, False)


def test_the_manifest_digest_is_the_digest_of_its_bytes(campaign: Campaign, signing_key: Path) -> None:
    built = build(campaign.run, key=signing_key)
    assert built.manifest_digest == "sha256:" + sha256_bytes((built.path / layout.MANIFEST).read_bytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 8}, "other parameters than scenario and state/tuned_edit_params.json give: bits"),
        ({"scope": "all"}, "scope"),
        ({"spec": "quant_rtn:8:128:ffn"}, "spec"),
    ],
)
def test_a_plan_whose_edit_is_not_its_scenarios_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    honest = Model.edit
    changed = {"prune_clean": change}
    monkeypatch.setattr(
        Model, "edit", lambda self, s: (e := honest(self, s)) and e.model_copy(update=changed.get(s.id, {}))
    )
    campaign = Campaign(tmp_path / "run").write().finish()
    with pytest.raises(EvidenceError, match="the edit of prune_clean on example__tiny") as raised:
        build(campaign.run, key=None)
    assert said in raised.value.what

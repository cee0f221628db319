"""Layout v2, evidence that leaves the machine, age limits, inspection, and what a killed build leaves."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import typer
from pack_campaign import Campaign
from typer.testing import CliRunner

from evpack.cli import build as build_command
from evpack.cli import verify as verify_command
from evpack.errors import BadInput, IntegrityError
from evpack.files import read_json, tree_digests, write_json
from evpack.pack import build as building
from evpack.pack import inventory, layout
from evpack.pack.build import BuiltPack, build
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_pack


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (build_command, verify_command):
        command.register(app)
    return app


def trusted(built: BuiltPack) -> Trust:
    return Trust(frozenset({str(built.fingerprint)}))


def test_layout_v2_verifies_and_stands_where_the_format_says(campaign: Campaign, signing_key: Path) -> None:
    built = build(campaign.run, key=signing_key, form="v2")
    names = set(tree_digests(built.path))
    assert {
        *("results/verdicts/final_verdict.json", "results/verdicts/final_verdict.txt"),
        *("results/verdicts/category_summary.json", "results/analysis/memory.json"),
        *("results/verification_summary.json", "metadata/plan.json", "metadata/scenarios.json"),
        *("metadata/source_repo.json", "metadata/manifest.json", "metadata/checksums.sha256"),
        *("metadata/manifest.signature.json", "manifest.json", "metadata/model_revisions.json"),
    } <= names
    assert not any(name.startswith("state/") for name in names)
    result = verify_pack(built.path, trusted(built), Demands(strict=True))
    assert (result.exit_code, result.verdict) == (0, "PASS"), result.to_json()


def test_both_layouts_hold_the_same_evidence(campaign: Campaign, signing_key: Path, tmp_path: Path) -> None:
    one = inventory.load(build(campaign.run, key=signing_key, out=tmp_path / "1").path).files
    two = inventory.load(build(campaign.run, key=signing_key, out=tmp_path / "2", form="v2").path).files
    place = layout.LAYOUTS["v2"].place
    volatile = {layout.ENVIRONMENT, layout.README, layout.PAGE, *layout.CONTROL}  # the page links to places
    for name in one.keys() - volatile:
        assert one.digests[name] == two.digests[place(name)], name


@pytest.mark.parametrize("copy", ["metadata/manifest.json", "metadata/checksums.sha256"])
@pytest.mark.parametrize("change", ["edit", "remove"])
def test_copies_in_layout_v2_are_copies(campaign: Campaign, signing_key: Path, copy: str, change: str) -> None:
    built = build(campaign.run, key=signing_key, form="v2")
    path = built.path / copy
    path.unlink() if change == "remove" else path.write_bytes(path.read_bytes() + b" ")
    result = verify_pack(built.path, trusted(built), Demands(strict=True))
    assert result.exit_code == 6 and "copy" in result.findings[0].text


def test_the_command_takes_the_layout_and_its_aliases(app: typer.Typer, campaign: Campaign, signing_key: Path) -> None:
    args = ["build", str(campaign.run.root), "--signing-key", str(signing_key), "--layout"]
    assert CliRunner().invoke(app, [*args, "enhanced"]).exit_code == 0
    assert read_json(campaign.run.pack / layout.MANIFEST)["layout"] == "v2"
    assert isinstance(CliRunner().invoke(app, [*args, "v3"]).exception, BadInput)


def test_no_directory_of_this_machine_is_in_a_pack(good_pack: BuiltPack, finished: Campaign) -> None:
    for name, data in inventory.load(good_pack.path).files.items():
        assert b"/models/tiny" not in data and str(finished.run.root.parent).encode() not in data, name


def test_the_age_of_evidence_is_that_of_its_reports(good_pack: BuiltPack) -> None:
    result = verify_pack(good_pack.path, trusted(good_pack), Demands(max_age=timedelta(days=1)))
    assert result.exit_code == 7 and "stale" in result.findings[0].text, "reports are of January, the pack is new"
    assert verify_pack(good_pack.path, trusted(good_pack), Demands(max_age=timedelta(days=36500))).ok


def test_baselines_may_be_as_old_as_the_plan(signing_key: Path, tmp_path: Path) -> None:
    campaign = Campaign(tmp_path / "run")
    campaign.plan = campaign.plan.model_copy(update={"created_at": "2020-02-03T00:00:00Z"})
    built = build(campaign.write().finish().run, key=signing_key)
    result = verify_pack(built.path, trusted(built), Demands(max_age=timedelta(days=365)))
    assert result.exit_code == 7 and "2020-02-03" in result.findings[0].text


def test_the_age_is_read_from_the_command_line(app: typer.Typer, good_pack: BuiltPack) -> None:
    pack = str(good_pack.path)
    assert CliRunner().invoke(app, ["verify", "--max-age", "2h", pack]).exit_code == 7
    assert CliRunner().invoke(app, ["verify", "--max-age", "36500d", pack]).exit_code == 8
    for text in ("soon", "", "-1d", "1.5d"):  # an empty one comes from a variable that is not set
        assert isinstance(CliRunner().invoke(app, ["verify", f"--max-age={text}", pack]).exception, BadInput)


def test_recomputing_can_be_left_out_and_that_is_said(app: typer.Typer, good_pack: BuiltPack) -> None:
    args = ["verify", "--skip-verify", "--json", "--expected-fingerprint", str(good_pack.fingerprint)]
    done = CliRunner().invoke(app, [*args, str(good_pack.path)])
    value = json.loads(done.output)
    assert (done.exit_code, value["skip_verify"], value["verdict"], value["verify"]["reports"]) == (8, True, None, 0)
    assert any("integrity only" in text for text in value["warnings"])


def test_inspect_says_what_a_pack_states(app: typer.Typer, good_pack: BuiltPack, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(good_pack.path)])
    assert done.exit_code == 0 and "strict ready    yes" in done.output and "example/tiny" in done.output
    value = json.loads(CliRunner().invoke(app, ["inspect", "--json", str(good_pack.path)]).output)
    assert value["stated"]["verification"]["clean_reports"] == 8 and value["strict_ready"]
    assert "reports         clean reports 8, " in done.output and "{" not in done.output
    assert CliRunner().invoke(app, ["inspect", str(tmp_path / "none")]).exit_code == 3


def test_inspect_tells_a_bad_signature_and_refuses_bad_bytes(
    app: typer.Typer, good_pack: BuiltPack, tmp_path: Path
) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(good_pack.path, copy)
    signature = copy / layout.SIGNATURE
    signature.write_bytes(signature.read_bytes().replace(b'"value":"', b'"value":"A', 1))
    value = json.loads((done := CliRunner().invoke(app, ["inspect", "--json", str(copy)])).output)
    assert (done.exit_code, value["strict_ready"]) == (0, False) and value["errors"]
    (copy / layout.README).write_text("other")
    assert CliRunner().invoke(app, ["inspect", str(copy)]).exit_code == 6


@pytest.mark.parametrize("trusted", [False, True])
def test_a_changed_manifest_is_signed_by_nobody(
    app: typer.Typer, good_pack: BuiltPack, tmp_path: Path, trusted: bool
) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(good_pack.path, copy)
    manifest = copy / layout.MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b" ")
    options = ["--expected-fingerprint", str(good_pack.fingerprint)] if trusted else []
    for command in ("inspect", "verify"):
        lines = CliRunner().invoke(app, [command, *options, str(copy)]).output.splitlines()
        (line,) = [line for line in lines if line.startswith("signed by")]
        assert line.startswith("signed by       signature invalid")


@pytest.mark.parametrize("size", [(32 << 20) + 1, (64 << 20) + 1])
def test_a_manifest_that_is_too_large_is_said_to_be_so(
    app: typer.Typer, good_pack: BuiltPack, tmp_path: Path, size: int
) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(good_pack.path, copy)
    os.truncate(copy / layout.MANIFEST, size)  # sparse
    done = CliRunner().invoke(app, ["verify", "--json", str(copy)])
    (error,) = json.loads(done.output)["errors"]
    assert (done.exit_code, error["exit"]) == (4, 4) and f"has {size} bytes" in error["error"]


def test_what_is_parsed_is_what_was_hashed(good_pack: BuiltPack, tmp_path: Path) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(good_pack.path, copy)
    files = inventory.load(copy).files
    path = copy / layout.VERDICT
    path.write_bytes(path.read_bytes().replace(b"PASS", b"FAIL"))
    with pytest.raises(IntegrityError, match="changed while"):
        files[layout.VERDICT]
    path.unlink()
    path.symlink_to(copy / layout.PLAN)
    with pytest.raises(IntegrityError, match="changed while"):
        files[layout.VERDICT]


# --- a build that is killed -----------------------------------------------------------------------


def dies(pid_stage: str, campaign: Campaign, key: Path) -> None:
    """Build in a child that dies by SIGKILL when it reaches a stage."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child never returns

        def die(*_: object, **__: object) -> None:
            os.kill(os.getpid(), 9)

        if pid_stage == "second rename":
            rename, calls = Path.rename, []

            def once(self: Path, target: Path) -> Path:
                calls.append(target)
                return die() if len(calls) == 2 else rename(self, target)  # type: ignore[return-value]

            Path.rename = once  # type: ignore[method-assign]
        else:
            setattr(building, pid_stage, die)
        build(campaign.run, key=key)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9


STAGES = ["collect", "recheck", "readme", "_standing", "_free_name", "_seal", "fsync_tree", "_publish"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "_free_name"])
def test_a_killed_build_leaves_no_pack_and_the_next_one_succeeds(
    campaign: Campaign, signing_key: Path, stage: str
) -> None:
    dies(stage, campaign, signing_key)
    assert not campaign.run.pack.exists()
    built = build(campaign.run, key=signing_key)
    assert verify_pack(built.path, trusted(built), Demands(strict=True)).ok
    assert not list(campaign.run.root.glob(".evidence_pack*"))


@pytest.mark.parametrize("stage", [*STAGES, "second rename"])
def test_a_killed_replacement_keeps_the_chain(campaign: Campaign, signing_key: Path, stage: str) -> None:
    first = build(campaign.run, key=signing_key)
    write_json(campaign.run.analysis / "memory.json", {"peak": 2})
    dies(stage, campaign, signing_key)
    if stage == "second rename":
        assert not campaign.run.pack.exists(), "moved aside, its successor not yet named"
    second = build(campaign.run, key=signing_key)
    assert second.kept == (stage == "second rename"), "the sealed one is published, not made again"
    manifest = read_json(second.path / layout.MANIFEST)
    assert manifest["supersedes"]["manifest_digest"] == first.manifest_digest
    old = second.path.with_name(manifest["supersedes"]["name"])
    assert verify_pack(old, trusted(first), Demands(strict=True)).ok
    assert verify_pack(second.path, trusted(second), Demands(strict=True)).ok
    assert not list(campaign.run.root.glob(".evidence_pack*"))

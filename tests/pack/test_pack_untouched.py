"""A sealed pack is never changed: no command writes into one, and one that changes while it is read is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from pack_campaign import Campaign
from typer.testing import CliRunner

from evpack.cli.main import build_app
from evpack.errors import BadInput
from evpack.files import tree_digests
from evpack.pack import inventory, keys, layout, verify
from evpack.pack.build import BuiltPack, build
from evpack.pack.verify import VerifyExit, verify_pack

REPORT = "reports/example__tiny/quant_clean/run_1/evaluation.report.json"
PROFILE = "state/models/example__tiny/model_profile.json"


@pytest.fixture
def app() -> typer.Typer:
    return build_app()


@pytest.fixture
def pack(good_pack: BuiltPack, tmp_path: Path) -> Iterator[Path]:
    """A copy that must be the same afterwards."""
    path = tmp_path / "pack"
    shutil.copytree(good_pack.path, path)
    before = tree_digests(path)
    yield path
    assert tree_digests(path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "--json-out", "{}/new.json", "{}"],
        ["diff", "--html", "{}/new.html", "{}", "{}"],
        ["diff", "--html", "{}/reports/new.html", "{}", "{}"],
        ["attest", "--out", "{}/new.json", "{}"],
        ["attest", "--out", "{}/../link/new.json", "{}"],
        ["tune", "fixture", "--out", "{}/state/tuned_edit_params.json"],
        ["keygen", "{}/key"],
        ["keygen", "{}/new/key"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_no_command_writes_into_a_pack(app: typer.Typer, pack: Path, words: list[str]) -> None:
    pack.with_name("link").symlink_to(pack)
    done = CliRunner().invoke(app, [word.format(pack) for word in words])
    assert isinstance(done.exception, BadInput) and "sealed pack" in done.exception.what


@pytest.mark.parametrize(
    "words",
    [
        ["attest", "."],
        ["build", "{run}", "--pack-dir", "{away}"],
        ["keygen", "key"],
        ["airflow", "setup"],
        ["campaign", "run", "--suite", "fixture"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("named", [False, True])
def test_no_command_begins_a_deployment_in_a_pack(
    app: typer.Typer,
    campaign: Campaign,
    pack: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    named: bool,
) -> None:
    """Without EVPACK_HOME it would lie in the current directory."""
    monkeypatch.chdir(pack)
    if named:
        monkeypatch.setenv("EVPACK_HOME", str(pack))
    places = {"run": campaign.run.root, "away": pack.with_name("away")}
    done = CliRunner().invoke(app, [word.format(**places) for word in words])
    assert isinstance(done.exception, BadInput), done.output


@pytest.mark.parametrize("inside", ["new", "results/new", "state"])
def test_no_pack_is_built_into_another(campaign: Campaign, signing_key: Path, pack: Path, inside: str) -> None:
    with pytest.raises(BadInput, match="sealed pack"):
        build(campaign.run, key=signing_key, out=pack / inside)


@pytest.mark.parametrize("name", ["", "."])
def test_a_key_needs_a_name(name: str) -> None:
    with pytest.raises(BadInput, match="no name"):
        keys.write_keypair(Path(name))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, "other bytes") for name in (REPORT, PROFILE, layout.PLAN, layout.VERDICT_TEXT, layout.README)),
        *((REPORT, change) for change in ("gone", "a link")),
    ],
)
def test_what_changes_while_it_is_read_is_refused(
    good_pack: BuiltPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: str
) -> None:
    root = tmp_path / "racing"
    shutil.copytree(good_pack.path, root)
    swaps: dict[str, Callable[[Path], object]] = {
        "other bytes": lambda path: path.write_bytes(path.read_bytes().replace(b"1", b"2")),
        "gone": Path.unlink,
        "a link": lambda path: (path.rename(tmp_path / "moved"), path.symlink_to(tmp_path / "moved")),
    }

    def load(path: Path) -> inventory.Inventory:
        found = inventory_load(path)
        swaps[change](path / name)
        return found

    inventory_load = inventory.load
    monkeypatch.setattr(verify.inventory, "load", load)
    result = verify_pack(root)
    assert result.exit_code is VerifyExit.INTEGRITY
    assert f"{name!r}: changed while the pack was read" in result.findings[0].text


def test_what_verified_and_then_changed_is_not_compared(
    app: typer.Typer, good_pack: BuiltPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "racing"
    shutil.copytree(good_pack.path, root)

    def judged(*args: object, **options: object) -> verify.Verification:
        result = verify_really(*args, **options)  # type: ignore[arg-type]
        (root / layout.VERDICT).write_text("{}")
        return result

    verify_really = verify.verify_pack
    monkeypatch.setattr(verify, "verify_pack", judged)
    done = CliRunner().invoke(app, ["diff", str(root), str(good_pack.path)])
    assert done.exit_code == VerifyExit.INTEGRITY and "changed while the pack was read" in done.output


def test_a_manifest_that_cannot_be_used_accuses_no_signature(good_pack: BuiltPack, tmp_path: Path) -> None:
    root = tmp_path / "pack"
    shutil.copytree(good_pack.path, root)
    (root / layout.MANIFEST).rename(tmp_path / "elsewhere")
    (root / layout.MANIFEST).symlink_to(tmp_path / "elsewhere")
    result = verify_pack(root)
    assert result.exit_code is VerifyExit.MISSING and not result.signature_holds
    assert not any("does not belong" in finding.text for finding in result.findings)

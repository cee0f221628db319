"""What the commands refuse before anything is computed or written, with the commands themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from typer.testing import CliRunner

from evpack.cli.main import build_app
from evpack.errors import BadInput, EvpackError
from evpack.pack import keys
from evpack.steps.runner import run_step

PACK = Path(__file__).parents[1] / "packs" / "v1" / "pack"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.chdir(tmp_path)


def refused(*words: str) -> EvpackError:
    """What a command line that must be refused is told."""
    result = CliRunner().invoke(build_app(), list(words))
    assert isinstance(result.exception, BadInput), result.output
    return result.exception


def content(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def copied_pack(tmp_path: Path) -> tuple[Path, dict[str, bytes | None]]:
    """A sealed pack and what is in it."""
    pack = tmp_path / "pack"
    shutil.copytree(PACK, pack)
    return pack, content(pack)


@pytest.mark.parametrize("command", ["campaign resume", "campaign status", "build", "plan --out"])
def test_a_sealed_pack_is_no_run_directory(command: str, tmp_path: Path) -> None:
    pack, before = copied_pack(tmp_path)
    error = refused(*command.split(), str(pack))
    assert (error.what, error.mend) == (f"{pack} is a sealed pack", "give its run directory")
    assert content(pack) == before


def test_no_step_runs_in_a_sealed_pack(tmp_path: Path) -> None:
    pack, before = copied_pack(tmp_path)
    with pytest.raises(BadInput, match="is a sealed pack"):
        run_step(pack, "compile_verdict")
    assert content(pack) == before


def rsa_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    path.chmod(0o600)


def readable_key(path: Path) -> None:
    keys.write_keypair(path)
    path.chmod(0o640)


def public_half(path: Path) -> None:
    keys.write_keypair(path.with_name("pair"))
    keys.public_path(path.with_name("pair")).rename(path)
    path.chmod(0o600)


def junk(path: Path) -> None:
    path.write_bytes(b"\x00junk")
    path.chmod(0o600)


PLAN = ("plan", "--suite", "fixture", "-p", "min_free_disk_gb=0", "-p", "scenarios=nan_injection")


@pytest.mark.parametrize("options", [(), ("--out", "run")])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (Path.mkdir, "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (rsa_key, "is not an Ed25519 key"),
        (readable_key, "can be read by others"),
        (public_half, "is not an unencrypted PKCS8 PEM"),
        (junk, "is not an unencrypted PKCS8 PEM"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_by_plan(
    make: Callable[[Path], object],
    said: str,
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = tmp_path / "key.pem"
    make(key)
    monkeypatch.setenv("PACK_SIGNING_KEY", str(key))
    assert f"signing key {key} {said}" in refused(*PLAN, *options).what
    assert not (tmp_path / "run").exists()


def test_a_key_that_can_sign_is_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.write_keypair(tmp_path / "key.pem")
    monkeypatch.setenv("PACK_SIGNING_KEY", str(tmp_path / "key.pem"))
    assert CliRunner().invoke(build_app(), [*PLAN, "--out", "run"]).exit_code == 0


def test_an_unsigned_campaign_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACK_SIGNING_KEY", "/no/key.pem")
    monkeypatch.setenv("PACK_SIGN_MANIFEST", "0")
    assert CliRunner().invoke(build_app(), PLAN).exit_code == 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file", "is not a directory of its own"),
        ("link", "is not a directory of its own"),
        ("file/pack", "cannot be written"),
        ("full", "is not empty and holds no pack"),
        ("run", "holds the run directory"),
    ],
)
def test_a_place_that_cannot_hold_the_pack_is_refused_by_plan(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    monkeypatch.setenv("PACK_DIR", str(tmp_path / place))
    what = refused(*PLAN, "--out", "run").what
    assert str(tmp_path / place) in what and said in what
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["new/pack", "empty", "run/evidence"])
def test_a_place_for_the_pack_is_planned_with(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PACK_DIR", str(tmp_path / place))
    assert CliRunner().invoke(build_app(), [*PLAN, "--out", "run"]).exit_code == 0
    assert not (tmp_path / "new").exists()

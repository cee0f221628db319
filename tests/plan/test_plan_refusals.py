"""What the commands refuse before anything is computed or written, with the commands themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evpack.cli.main import build_app
from evpack.errors import BadInput, EvpackError
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

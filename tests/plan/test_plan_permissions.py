"""Commands on paths that the user may not read or write, each in a process that file permissions bind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evpack.cli import main as command_line

PACK = Path(__file__).parents[1] / "packs" / "v1" / "pack"
PLAN = ("plan", "--suite", "fixture", "-p", "min_free_disk_gb=0", "-p", "scenarios=nan_injection")
_PR_CAPBSET_DROP = 24
_CAPABILITIES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root pass by file permissions."""


def obey_permissions() -> None:
    """Before the exec of a child of root: file permissions bind it as they bind any owner."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in _CAPABILITIES:
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory that its owner may neither read nor write, with a directory and a text in it."""
    directory = tmp_path / "locked"
    directory.mkdir()
    (directory / "there").mkdir()
    (directory / "text.txt").write_text("Four score and seven years ago.")
    directory.chmod(0)
    yield directory
    directory.chmod(0o700)


def evpack(tmp_path: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evpack.cli.main", *words],
        env={**os.environ, "EVPACK_HOME": str(tmp_path / "home"), "NUM_GPUS": "0", **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=obey_permissions if os.geteuid() == 0 else None,
    )


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (("campaign", "run", "--suite", "fixture", "-p", "min_free_disk_gb=0"), {"EVPACK_HOME": "{locked}/home"}),
        ((*PLAN, "--out", "{locked}/new"), {}),
        ((*PLAN, "--out", "{locked}/there"), {}),
        ((*PLAN, "-p", "output_dir={locked}/there"), {}),
        ((*PLAN, "-p", "models={locked}/there"), {}),
        ((*PLAN, "-p", "text_path={locked}/text.txt"), {}),
        (PLAN, {"PACK_SIGNING_KEY": "{locked}/key.pem"}),
        (PLAN, {"PACK_DIR": "{locked}/pack"}),
        (("build", "{locked}/there"), {}),
        (("campaign", "resume", "{locked}/there"), {}),
        (("tune", "fixture", "--out", "{locked}/there/tuned.json"), {}),
        (("verify", str(PACK), "--json-out", "{locked}/there/out.json"), {}),
    ],
)
def test_a_path_that_may_not_be_used_is_told_in_two_lines(
    words: tuple[str, ...], environ: dict[str, str], tmp_path: Path, locked: Path
) -> None:
    put = {name: value.format(locked=locked) for name, value in environ.items()}
    result = evpack(tmp_path, *(word.format(locked=locked) for word in words), **put)
    assert result.returncode == 2, result.stderr
    first, *rest = result.stderr.splitlines()
    assert first.startswith("evpack: ") and str(locked) in first
    assert len(rest) == 1 and rest[0].startswith("  mend: ")


def raising(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "build_app", lambda: app)


def test_an_error_of_the_system_without_a_path_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(OSError("lost"), monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert capsys.readouterr().err.startswith("evpack: lost\n  mend: ")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError("defect"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        command_line.main()

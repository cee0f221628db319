"""Where no engine can be had, that is told apart from tests that passed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_engine(tmp_path: Path) -> dict[str, str]:
    """An environment without Docker and without means to install it."""
    for name in ("bash", "dirname", "id", "make", "sh", "test"):
        if found := shutil.which(name):
            (tmp_path / name).symlink_to(found)
    return {"PATH": str(tmp_path)}


def test_what_was_skipped_has_a_code_of_its_own(no_engine: dict[str, str]) -> None:
    command = ["bash", "tools/with_docker.sh", "true"]
    done = subprocess.run(command, cwd=ROOT, env=no_engine, capture_output=True, text=True, check=False)
    assert done.returncode == 77 and done.stdout.startswith("skipped: no Docker engine answers")


@pytest.mark.parametrize(("more", "ends_well"), [((), True), (("MAY_SKIP=none",), False)])
def test_people_may_skip_what_continuous_integration_may_not(
    more: tuple[str, ...], ends_well: bool, no_engine: dict[str, str]
) -> None:
    command = ["make", "test-docker", "READY=", "BIN=/none", *more]
    done = subprocess.run(command, cwd=ROOT, env=no_engine, capture_output=True, text=True, check=False)
    assert "skipped: no Docker engine answers" in done.stdout
    assert (done.returncode == 0) is ends_well
    assert "MAY_SKIP=none" in (ROOT / ".ci/run").read_text(encoding="utf-8")

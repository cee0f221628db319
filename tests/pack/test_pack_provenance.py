"""Source provenance: complete or an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import BadInput, MissingFile
from evpack.pack import provenance
from evpack.plan.nvml import DeviceFacts

COMPLETE = {
    "uri": "https://example.org/project.git",
    "commit": "0" * 40,
    "branch": None,
    "describe": "v1",
    "dirty": False,
    "recorded_at": "2026-01-01T00:00:00Z",
}


def git(root: Path, *command: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *command], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "package").mkdir(parents=True)
    (root / "package" / "code.py").write_text("x = 1\n")
    git(root, "init", "--initial-branch", "main")
    git(root, "add", "package")
    git(root, "commit", "-m", "first")
    return root


def test_a_checkout_names_its_commit(checkout: Path) -> None:
    found = provenance.collect_source_repo(checkout / "package", environ={})
    assert len(found["commit"]) == 40
    assert (found["branch"], found["uri"], found["dirty"]) == ("main", None, False)
    assert provenance.check_source_repo(json.dumps(found).encode(), "x") == found


def test_a_change_makes_it_dirty_and_a_detached_head_has_no_branch(checkout: Path) -> None:
    (checkout / "package" / "code.py").write_text("x = 2\n")
    git(checkout, "checkout", "--detach")
    found = provenance.collect_source_repo(checkout / "package", environ={})
    assert found["dirty"] is True and found["branch"] is None and found["describe"].endswith("-dirty")


@pytest.mark.parametrize(
    ("remote", "uri"),
    [
        ("https://user:token@example.org/a/project.git", "https://example.org/a/project.git"),
        ("git@example.org:a/project.git", "git@example.org:a/project.git"),
        ("/srv/private/project.git", "file:project.git"),
        ("file:///srv/private/project.git", "file:project.git"),
    ],
)
def test_a_remote_is_named_without_credentials_and_local_paths(checkout: Path, remote: str, uri: str) -> None:
    git(checkout, "remote", "add", "origin", remote)
    assert provenance.collect_source_repo(checkout, environ={})["uri"] == uri


def test_a_surrounding_checkout_of_something_else_does_not_count(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    with pytest.raises(BadInput, match="does not track"):
        provenance.collect_source_repo(installed, environ={})


def test_without_git_history_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BadInput, match=provenance.SOURCE_ENV):
        provenance.collect_source_repo(tmp_path, environ={})


def test_without_git_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="git is not installed"):
        provenance.collect_source_repo(tmp_path, environ={})


def test_a_supplied_file_wins(tmp_path: Path, checkout: Path) -> None:
    path = tmp_path / "source.json"
    path.write_text(json.dumps(COMPLETE))
    assert provenance.collect_source_repo(checkout, environ={provenance.SOURCE_ENV: str(path)}) == COMPLETE


def test_a_supplied_file_must_exist(checkout: Path) -> None:
    with pytest.raises(MissingFile):
        provenance.collect_source_repo(checkout, environ={provenance.SOURCE_ENV: str(checkout / "none")})


@pytest.mark.parametrize(
    "value",
    [
        [],
        {key: value for key, value in COMPLETE.items() if key != "dirty"},
        COMPLETE | {"commit": "abc"},
        COMPLETE | {"commit": None},
        COMPLETE | {"dirty": "no"},
    ],
)
def test_an_incomplete_file_is_refused(value: Any) -> None:
    with pytest.raises(BadInput):
        provenance.check_source_repo(json.dumps(value).encode(), "source_repo.json")


def test_the_environment_has_the_fields_of_the_manifest() -> None:
    found = provenance.environment()
    assert {"recorded_at", "platform", "python_version", "gpu_name", "gpu_count", "gpu_memory_gb"} < found.keys()
    assert isinstance(found["fp8_native_support"], bool)
    json.dumps(found, allow_nan=False)


def test_the_environment_describes_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    device = DeviceFacts("GPU-0", 0, 80.04, 80.0, 0, None, name="Example 80", capability="9.0", driver="580.1")
    monkeypatch.setattr("evpack.plan.nvml.read_devices", lambda environ: asked.append(environ) or [device, device])
    found = provenance.environment()
    assert asked == [{}], "pretended devices are no part of a machine"
    assert {key: found[key] for key in ("gpu_name", "gpu_count", "gpu_memory_gb", "driver_version")} == {
        "gpu_name": "Example 80",
        "gpu_count": 2,
        "gpu_memory_gb": 80.0,
        "driver_version": "580.1",
    }
    assert found["fp8_native_support"] is True


def test_a_build_carries_its_provenance_and_the_checkout_stays_as_it_is(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    known = tmp_path / "source_repo.json"
    known.write_text(json.dumps(COMPLETE))
    environ = {**os.environ, "EVPACK_SOURCE_REPO": str(known)}
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=root, env=environ, check=True, capture_output=True)
    assert json.loads((tmp_path / "lib" / "evpack" / "pack" / "source_repo.json").read_text()) == COMPLETE
    assert not provenance.BAKED.exists()


def test_an_installed_build_plans_by_what_it_carries_and_refuses_to_plan_without(tmp_path: Path) -> None:
    root, lib = Path(__file__).parents[2], tmp_path / "lib"
    known = tmp_path / "source_repo.json"
    known.write_text(json.dumps(COMPLETE))
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(lib)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EVPACK_", "PACK_"))}
    subprocess.run(build, cwd=root, env=environ | {"EVPACK_SOURCE_REPO": str(known)}, check=True, capture_output=True)
    environ |= {"PYTHONPATH": str(lib), "EVPACK_HOME": str(tmp_path / "home")}

    def plan(run: Path) -> subprocess.CompletedProcess[str]:
        command = "import sys; from evpack.cli.main import main; sys.exit(main())"
        words = [sys.executable, "-c", command, "plan", "--suite", "fixture", "--out", str(run)]
        return subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    done = plan(tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "one" / "state" / "source_repo.json").read_text()) == COMPLETE
    (lib / "evpack" / "pack" / "source_repo.json").unlink()
    done = plan(tmp_path / "two")
    assert done.returncode == 2
    assert "install a build that carries one" in done.stderr
    assert not (tmp_path / "two").exists()


def test_a_build_reads_provenance_with_the_standard_library_alone() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import evpack.pack.provenance"
    include = Path(provenance.__file__).parents[2]
    subprocess.run([sys.executable, "-S", "-I", "-c", code, str(include)], check=True, capture_output=True)

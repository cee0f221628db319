"""Publishing that is all or nothing."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from evpack import files, publishing
from evpack.errors import DiskFull
from tests.waiting import DEADLINE_S


def test_publishing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), publishing.publishing(target) as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with publishing.publishing(target) as part:
        (part / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"


def test_publishing_never_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(publishing.AlreadyPublished), publishing.publishing(target) as part:
        (part / "file").write_text("loser")
        target.mkdir()
        (target / "file").write_text("winner")
    assert (target / "file").read_text() == "winner"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(publishing.AlreadyPublished), publishing.publishing(target):
        pytest.fail("must not start when the target exists")


def publish_and_hang(target: Path, ready: Any) -> None:
    with publishing.publishing(target, "1") as part:
        (part / "file").write_text("half")
        ready.set()
        signal.pause()


def test_what_a_killed_process_left_goes_and_what_another_one_makes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    ready, target = context.Event(), tmp_path / "out"
    (tmp_path / "out.tmp.backup").mkdir()  # of a person
    publishing.temporary(tmp_path / "other", "1").mkdir()  # of another target
    monkeypatch.setattr("socket.gethostname", lambda: "another-host.example")
    publishing.temporary(target, "1").mkdir()  # of another host, whose locks may not be seen here
    monkeypatch.undo()
    before = set(tmp_path.iterdir())
    process = context.Process(target=publish_and_hang, args=(target, ready))
    process.start()
    assert ready.wait(DEADLINE_S)
    with pytest.raises(RuntimeError), publishing.publishing(target):
        raise RuntimeError
    (left,) = set(tmp_path.iterdir()) - before
    assert (left / "file").exists(), "it was held"
    process.kill()
    process.join()
    assert left.exists()
    with publishing.publishing(target):
        assert not left.exists()
    assert set(tmp_path.iterdir()) == before | {target}


def test_write_atomic_keeps_the_old_file_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(publishing.AlreadyPublished):
        files.write_json(path, {"x": 2}, replace=False)
    assert files.read_json(path) == {"x": 1}
    files.write_json(path, {"x": 3})
    assert files.read_json(path) == {"x": 3}
    assert list(path.parent.iterdir()) == [path]


def test_the_longest_name_of_a_file_system_can_be_written(tmp_path: Path) -> None:
    """As the marker of a step has it whose model and scenario have the longest names."""
    path = tmp_path / ("x" * 250 + ".json")
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_full_device_is_named() -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(DiskFull, match="/dev/full"),
        publishing.disk_errors(full),
        full.open("wb", buffering=0) as stream,
    ):
        stream.write(b"x")

"""A process is known by its id and its start, whatever became of either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evpack import processes
from evpack.processes import lives, start_of


def test_a_process_is_told_from_all_others_that_get_its_id() -> None:
    mine, first = start_of(os.getpid()), start_of(1)
    assert mine is not None and first is not None and mine != first
    assert lives(os.getpid(), mine) and not lives(os.getpid(), first)


def test_a_process_that_ended_lives_no_more_even_unburied() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        start = start_of(child.pid)
        assert start is not None and lives(child.pid, start)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet asked for
        assert start_of(child.pid) is None and not lives(child.pid, start)
    assert start_of(child.pid) is None


def test_what_cannot_be_seen_counts_as_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = start_of(os.getpid()) or ""
    monkeypatch.setattr(processes, "_PROC", tmp_path)  # as where other users' processes are hidden
    assert lives(os.getpid(), start)
    assert not lives(1 << 23, start)

"""Canonical JSON, strict parsing, publishing."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack import files
from evpack.errors import DiskFull, EvidenceError
from tests.waiting import DEADLINE_S

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_survives_a_round_trip(value: object) -> None:
    data = files.canonical_json(value)
    assert files.parse_json(data, "x") == value
    assert files.canonical_json(files.parse_json(data, "x")) == data


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=2))
def test_canonical_json_ignores_key_order(value: dict[str, int]) -> None:
    assert files.canonical_json(dict(reversed(value.items()))) == files.canonical_json(value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_writers_refuse_non_finite_numbers(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"x": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.pretty_json([number])
    assert files.finite_or_none(number) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "overflows"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xff\xfe", "UTF-8"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[1] tail", "not JSON"),
        (b"[" * 100_000, "not JSON|deep"),
        (b"1" * 5000, "digits|int"),
    ],
)
def test_strict_parser_refuses(data: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        files.parse_json(data, "document")


def test_strict_parser_has_a_size_limit() -> None:
    with pytest.raises(EvidenceError, match="limit of 4"):
        files.parse_json(b"[1,2]", "document", limit=4)


@given(st.binary(max_size=200))
def test_strict_parser_never_fails_in_another_way(data: bytes) -> None:
    try:
        value = files.parse_json(data, "fuzz")
    except EvidenceError:
        return
    assert json.loads(data) == value


def test_publishing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), files.publishing(target) as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with files.publishing(target) as part:
        (part / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"


def test_publishing_never_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(files.AlreadyPublished), files.publishing(target) as part:
        (part / "file").write_text("loser")
        target.mkdir()
        (target / "file").write_text("winner")
    assert (target / "file").read_text() == "winner"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(files.AlreadyPublished), files.publishing(target):
        pytest.fail("must not start when the target exists")


def publish_and_hang(target: Path, ready: Any) -> None:
    with files.publishing(target, "1") as part:
        (part / "file").write_text("half")
        ready.set()
        signal.pause()


def test_what_a_killed_process_left_goes_and_what_another_one_makes_stays(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, target = context.Event(), tmp_path / "out"
    for name in ("out.tmp.backup", f"other.tmp.1.{32 * '0'}"):  # of a person; of another target
        (tmp_path / name).mkdir()
    before = set(tmp_path.iterdir())
    process = context.Process(target=publish_and_hang, args=(target, ready))
    process.start()
    assert ready.wait(DEADLINE_S)
    with pytest.raises(RuntimeError), files.publishing(target):
        raise RuntimeError
    (left,) = set(tmp_path.iterdir()) - before
    assert (left / "file").exists(), "it was held"
    process.kill()
    process.join()
    assert left.exists()
    with files.publishing(target):
        assert not left.exists()
    assert set(tmp_path.iterdir()) == before | {target}


def test_write_atomic_keeps_the_old_file_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(files.AlreadyPublished):
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


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to read it would never end
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(EvidenceError, match="no file"):
            files.read_json(path)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "nothing")


def test_a_full_device_is_named() -> None:
    full = Path("/dev/full")
    with pytest.raises(DiskFull, match="/dev/full"), files.disk_errors(full), full.open("wb", buffering=0) as stream:
        stream.write(b"x")


def test_tree_digests_name_every_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"b")
    (tmp_path / "a").write_bytes(b"")
    digests = files.tree_digests(tmp_path)
    assert list(digests) == ["a", "sub/b"]
    assert digests["a"] == files.sha256_bytes(b"") == files.sha256_file(tmp_path / "a")


def test_what_leaves_the_machine_names_no_directory_and_leaving_twice_changes_nothing() -> None:
    value = {"path": "/home/me/models/tiny/", "id": "org/tiny", "list": ["/a/b", 1, None], "inner": {"x": "~/c"}}
    out = files.portable(value)
    assert out == {"path": "tiny", "id": "org/tiny", "list": ["b", 1, None], "inner": {"x": "~/c"}}
    assert files.portable(out) == out


@pytest.mark.parametrize("token", ["1e999", "-1e400", "1" + "0" * 309 + ".5", "0.1e310", "1" + "0" * 250 + "e99"])
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"a": [1, {"b": [2.5, %s]}]}', '["1e999", [[%s, null]]]'])
def test_a_float_that_overflows_is_refused_wherever_it_stands(token: str, around: str) -> None:
    with pytest.raises(EvidenceError, match="overflows"):
        files.parse_json((around % token).encode(), "x.json")
    assert files.parse_json((around % "1e308").encode(), "x.json") is not None

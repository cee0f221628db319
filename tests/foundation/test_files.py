"""Canonical JSON, strict parsing, digests."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack import files
from evpack.errors import EvidenceError

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


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to read it would never end
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(EvidenceError, match="no file"):
            files.read_json(path)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "nothing")


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

"""YAML of operators: plain data, each key once, includes that stay where they may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evpack.errors import BadInput, MissingFile
from evpack.yaml_files import Reach, parse_yaml, read_yaml


def test_includes_are_read_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "top.yaml").write_text("a: !include parts/one.yaml\nb: 2")
    (tmp_path / "parts" / "one.yaml").write_text("- !include two.yaml\n- !include ../three.yaml")
    (tmp_path / "parts" / "two.yaml").write_text("{x: 1.5}")
    (tmp_path / "three.yaml").write_text("null")
    assert read_yaml(tmp_path / "top.yaml", Reach(tmp_path)) == {"a": [{"x": 1.5}, None], "b": 2}


@pytest.mark.parametrize("how", ["../secret.yaml", "link.yaml", "absolute"])
def test_an_include_may_leave_the_directory_only_when_allowed(tmp_path: Path, how: str) -> None:
    directory, secret = tmp_path / "conf", tmp_path / "secret.yaml"
    directory.mkdir()
    secret.write_text("s: 1")
    (directory / "link.yaml").symlink_to(secret)
    top = directory / "top.yaml"
    top.write_text(f"!include {secret if how == 'absolute' else how}")
    with pytest.raises(BadInput, match="leaves the configuration's directory") as caught:
        read_yaml(top, Reach(directory))
    assert "INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE" in caught.value.mend
    assert read_yaml(top, Reach(directory, outside=True)) == {"s": 1}


def test_circles_floods_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("!include b.yaml")
    (tmp_path / "b.yaml").write_text("!include a.yaml")
    with pytest.raises(BadInput, match=r"a\.yaml includes itself by way of .*b\.yaml"):
        read_yaml(tmp_path / "a.yaml", Reach(tmp_path))
    (tmp_path / "leaf.yaml").write_text("1")
    (tmp_path / "flood.yaml").write_text("[" + ", ".join(["!include leaf.yaml"] * 64) + "]")
    with pytest.raises(BadInput, match="more than 64 files"):
        read_yaml(tmp_path / "flood.yaml", Reach(tmp_path))
    (tmp_path / "lost.yaml").write_text("x: !include nowhere.yaml")
    with pytest.raises(MissingFile, match=r"nowhere\.yaml does not exist"):
        read_yaml(tmp_path / "lost.yaml", Reach(tmp_path))
    (tmp_path / "kind.yaml").write_text("!include [leaf.yaml]")
    with pytest.raises(BadInput, match="not plain YAML"):
        read_yaml(tmp_path / "kind.yaml", Reach(tmp_path))
    with pytest.raises(BadInput, match="cannot be read"):
        read_yaml(tmp_path, Reach(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "key 'a' stands twice"),
        ("a: &x [1]\nb: *x", "aliases are not supported"),
        ("!!python/object:os.system {}", "not plain YAML"),
        ("a: [", "not plain YAML"),
        ("a: 2026-13-45", "not plain YAML"),
        ("a: 2026-11-23", "not plain YAML"),  # a date is no text and no number
        ("a: !!set {x}", "not plain YAML"),
        ("[" * 5000, "(nested too deeply|not plain YAML)"),
        ("a" * (1 << 20) + "b", "more than"),
        (b"\xff\xfe\x00", "not plain YAML"),
        ("{[1]: 2}", "not plain YAML"),
        ("1\n---\n2", "not plain YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(BadInput, match=f"doc.*{message}"):
        parse_yaml(text, "doc")


def test_numbers_are_read_as_elsewhere() -> None:
    assert parse_yaml("[1e-2, 1.5E3, -1e+1, .5e1, 1.e2, 0x1e2, 1e, e2]", "doc") == [
        *(0.01, 1500.0, -10.0, 5.0, 100.0, 482, "1e", "e2")
    ]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(BadInput, match=r"pipe\.yaml cannot be read \(no regular file\)"):
        read_yaml(tmp_path / "pipe.yaml", Reach(tmp_path))


def test_an_empty_document_is_null() -> None:
    assert parse_yaml("", "doc") is None

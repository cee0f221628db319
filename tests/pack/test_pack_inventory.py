"""Closed inventories and canonical names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import IntegrityError
from evpack.files import sha256_bytes
from evpack.pack import checksums, inventory, layout

NAMES = st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,10}", fullmatch=True), min_size=1, max_size=4).map(
    "/".join
)
DIGEST = "0" * 64


@pytest.mark.parametrize("name", ["README.md", "reports/m/run_1/records.json", "a+b", "_x", "x" * layout.MAX_NAME])
def test_canonical_names(name: str) -> None:
    assert layout.name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", "/a", "a/", "a//b", "./a", "a/./b", "../a", "a/../b", ".", "..", "a\\b", "a b", "a\nb", "a\x00b", "C:a"),
        *(".DS_Store", "a/.hidden", "-rf", "café", "cafe\u0301", "a\u202eb", "a\udcff", "x" * (layout.MAX_NAME + 1)),
    ],
)
def test_every_other_spelling_is_refused(name: str) -> None:
    assert layout.name_problem(name) is not None


def tree(root: Path) -> Path:
    (root / "state").mkdir(parents=True)
    (root / "README.md").write_bytes(b"hello\n")
    (root / "state" / "plan.json").write_bytes(b"{}\n")
    return root


def test_the_files_of_a_plain_directory(tmp_path: Path) -> None:
    found = inventory.load(tree(tmp_path / "p"))
    assert found.files == {"README.md": b"hello\n", "state/plan.json": b"{}\n"} and found.problems == []


def spoil(root: Path, how: str) -> None:
    target = root / "state" / "spoiled"
    outside = root.parent / "outside"
    outside.write_bytes(b"outside")
    match how:
        case "link inside":
            target.symlink_to("plan.json")
        case "link outside":
            target.symlink_to(outside)
        case "dangling link":
            target.symlink_to("nowhere")
        case "linked directory":
            target.symlink_to(root, target_is_directory=True)
        case "hard link":
            os.link(outside, target)
        case "pipe":
            os.mkfifo(target)
        case "empty directory":
            target.mkdir()
        case "hidden file":
            (root / ".DS_Store").write_bytes(b"")
        case "name of bytes":
            (root / os.fsdecode(b"caf\xff")).write_bytes(b"")
        case "case collision":
            (root / "readme.md").write_bytes(b"")
        case "deep":
            (root / "/".join("d" * (inventory.MAX_DEPTH + 1))).mkdir(parents=True)


@pytest.mark.parametrize(
    "how",
    [
        *("link inside", "link outside", "dangling link", "linked directory", "hard link", "pipe", "empty directory"),
        *("hidden file", "name of bytes", "case collision", "deep"),
    ],
)
def test_everything_but_plain_files_is_a_problem(tmp_path: Path, how: str) -> None:
    root = tree(tmp_path / "p")
    spoil(root, how)
    found = inventory.load(root)
    assert found.problems
    assert b"outside" not in found.files.values()
    assert found.files["README.md"] == b"hello\n"


@pytest.mark.parametrize("how", ["link outside", "dangling link", "pipe"])
def test_what_is_no_file_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    root = tree(tmp_path / "p")
    before = {name.name for name in root.rglob("*")}
    spoil(root, how)
    opened: list[str] = []

    def watched(path: Path, *args: int) -> int:
        opened.append(Path(path).name)
        return really(path, *args)

    really = os.open
    monkeypatch.setattr(inventory.os, "open", watched)
    assert inventory.load(root).problems and set(opened) <= before


def test_limits_on_count_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "p")
    monkeypatch.setattr(inventory, "MAX_FILE_BYTES", 4)
    assert any("limit of 4" in problem for problem in inventory.load(root).problems)
    monkeypatch.undo()
    monkeypatch.setattr(inventory, "MAX_FILES", 1)
    assert any("limit of 1 files" in problem for problem in inventory.load(root).problems)
    monkeypatch.undo()
    monkeypatch.setattr(inventory, "MAX_ENTRIES", 10)
    for number in range(40):
        (root / "many" / str(number)).mkdir(parents=True)
    found = inventory.load(root)
    assert not found.complete and len(found.problems) == 1 and "limit of 10" in found.problems[0]


def test_a_directory_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert inventory.load(tmp_path / "none").problems


@given(st.dictionaries(NAMES, st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=20))
def test_checksums_survive_a_round_trip(digests: dict[str, str]) -> None:
    digests = {name: digest for name, digest in digests.items() if name not in layout.CONTROL}
    if digests:
        assert checksums.parse(checksums.render(digests)) == digests


def test_coreutils_accepts_the_list(tmp_path: Path) -> None:
    files = inventory.load(tree(tmp_path / "p")).files
    listing = checksums.render({name: sha256_bytes(data) for name, data in files.items()})
    (tmp_path / "p" / layout.CHECKSUMS).write_bytes(listing)
    command = ["sha256sum", "--check", "--strict", layout.CHECKSUMS]
    done = subprocess.run(command, cwd=tmp_path / "p", capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "README.md: OK\nstate/plan.json: OK\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{DIGEST}  a",
        f"{DIGEST}  a\r\n",
        f"\ufeff{DIGEST}  a\n",
        f"{DIGEST} a\n",
        f"{DIGEST}\ta\n",
        f"{DIGEST[1:]}  a\n",
        f"{DIGEST[:-1]}g  a\n",
        f"{DIGEST}  \n",
        f"{DIGEST}  a\n\n",
        f"{DIGEST}  a\n{DIGEST}  a\n",
        f"{DIGEST}  b\n{DIGEST}  a\n",
        f"{DIGEST}  /etc/passwd\n",
        f"{DIGEST}  ../a\n",
        f"{DIGEST}  a//b\n",
        f"{DIGEST}  ./a\n",
        f"{DIGEST}  a\\b\n",
        f"{DIGEST}  manifest.json\n",
        f"{DIGEST}  checksums.sha256\n",
    ],
)
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match=r"checksums\.sha256"):
        checksums.parse(text.encode())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_a_typed_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        checksums.parse(data)

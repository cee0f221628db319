"""The bytes of a directory that nobody trusts, read once, and everything about its shape that is not allowed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from evpack.pack import layout

MAX_FILES = 100_000
"""Most files in a pack; 64 models with 20 scenarios and all runs come to about 25,000."""
MAX_FILE_BYTES = 64 << 20
"""Largest file in a pack; the largest real one (a plan of 64 models) is below 8 MB."""
MAX_PACK_BYTES = 1 << 30
"""Most bytes in a pack; weights are never packed, and 1,000 reports come to about 40 MB."""
MAX_DEPTH = 8
"""Deepest directory in a pack; layout v1 uses 4."""


@dataclass
class Inventory:
    """What was found: the regular files, and what should not be there."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Content by POSIX relative name. Every check and every parse uses these bytes; no file is read twice."""
    problems: list[str] = field(default_factory=list)
    total: int = 0
    """Bytes of all files."""


def load(root: Path) -> Inventory:
    """Read a directory as a closed inventory: regular files with canonical names, and nothing else.

    Links (symbolic or hard), devices, pipes, sockets, unreadable files, empty directories, names that are not
    canonical and names that collide without case are problems; each is named, none is followed or opened.
    """
    found = Inventory()
    _directory(root, "", 0, found)
    for name in layout.collisions(found.files):
        found.problems.append(f"{name!r}: several names differ only in case")
    return found


def _directory(path: Path, prefix: str, depth: int, found: Inventory) -> None:
    try:
        with os.scandir(path) as entries:
            children = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.problems.append(f"{prefix or '.'!r}: directory cannot be read ({error.strerror})")
        return
    if not children:
        found.problems.append(f"{prefix or '.'!r}: empty directory")
    for entry in children:
        name = prefix + entry.name
        if problem := layout.name_problem(name):
            found.problems.append(f"{name!a:.300}: {problem}")
        elif entry.is_dir(follow_symlinks=False):
            if depth >= MAX_DEPTH:
                found.problems.append(f"{name!r}: directories nested deeper than {MAX_DEPTH}")
            else:
                _directory(path / entry.name, name + "/", depth + 1, found)
        elif len(found.files) >= MAX_FILES or found.total > MAX_PACK_BYTES:
            found.problems.append(f"{name!r}: beyond the limit of {MAX_FILES} files or {MAX_PACK_BYTES} bytes")
            return
        else:
            _file(path / entry.name, name, found)


def _file(path: Path, name: str, found: Inventory) -> None:
    try:  # O_NOFOLLOW refuses links, O_NONBLOCK keeps a pipe from blocking; the checks are on what was opened
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "symbolic link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        found.problems.append(f"{name!r}: {what}")
        return
    try:
        if problem := _shape_problem(os.fstat(handle)):
            found.problems.append(f"{name!r}: {problem}")
            return
        with os.fdopen(handle, "rb", closefd=False) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            found.problems.append(f"{name!r}: grew beyond {MAX_FILE_BYTES} bytes while it was read")
        else:
            found.files[name] = data
            found.total += len(data)
    except OSError as error:
        found.problems.append(f"{name!r}: cannot be read ({error.strerror})")
    finally:
        os.close(handle)


def _shape_problem(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_nlink != 1:
        return "hard link (its bytes are shared with a file elsewhere)"
    if status.st_size > MAX_FILE_BYTES:
        return f"{status.st_size} bytes, more than the limit of {MAX_FILE_BYTES}"
    return None

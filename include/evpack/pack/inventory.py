"""A directory that nobody trusts: its files by digest, and everything about its shape that is not allowed.

No content is kept, so memory does not grow with the pack. Each file is hashed once; whoever asks for its bytes later
gets bytes with that digest or an error, so what is parsed is always what was hashed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from evpack.errors import IntegrityError
from evpack.files import sha256_bytes
from evpack.pack import layout

MAX_FILES = 100_000
"""Most files in a pack; 64 models with 20 scenarios and all runs come to about 25,000."""
MAX_ENTRIES = 2 * MAX_FILES
"""Most names in a pack, of files and directories together, whatever they are."""
MAX_FILE_BYTES = 64 << 20
"""Largest file in a pack; the largest real one (a plan of 64 models) is below 8 MB."""
MAX_PACK_BYTES = 1 << 30
"""Most bytes in a pack: 4,600 reports of models of 30 layers (0.23 MB each, all files beside it, 32 windows, pages),
2,000 of models of 80."""
MAX_DEPTH = 8
"""Deepest directory in a pack; layout v1 uses 4."""
_CHUNK = 1 << 18


class Files(Mapping[str, bytes]):
    """Content by POSIX relative name, read when it is asked for and checked against its digest."""

    def __init__(self, root: Path | None = None, content: Mapping[str, bytes] | None = None) -> None:
        self._root = root
        self._content = dict(content or {})
        self.digests = {name: sha256_bytes(data) for name, data in self._content.items()}
        """Hex SHA-256 by name."""

    def __getitem__(self, name: str) -> bytes:
        """The bytes that have the file's digest.

        Raises:
            KeyError: when there is no such file.
            IntegrityError: when the file is no longer what it was.
        """
        digest = self.digests[name]
        if name in self._content:
            return self._content[name]
        assert self._root is not None  # noqa: S101 - only files below a root are not in memory
        try:
            with _opened(self._root / name) as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
        except (OSError, _Refused) as error:
            raise IntegrityError(f"{name!r}: changed while the pack was read ({error})") from error
        if sha256_bytes(data) != digest:
            raise IntegrityError(f"{name!r}: changed while the pack was read")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, name: object) -> bool:
        return name in self.digests


@dataclass
class Inventory:
    """What was found: the regular files, and what should not be there."""

    files: Files
    problems: list[str] = field(default_factory=list)
    total: int = 0
    """Bytes of all files."""
    entries: int = 0
    """Names met so far."""
    complete: bool = True
    """False when a limit of the whole pack stopped the reading; the last problem says which."""


class _TooMuch(Exception):
    """A limit of the whole pack is passed: looking further is not worth it."""


class _Refused(Exception):
    """A file of a shape that no pack may hold."""


def load(root: Path) -> Inventory:
    """Read a directory as a closed inventory: regular files with canonical names, and nothing else.

    Links (symbolic or hard), devices, pipes, sockets, unreadable files, empty directories, names that are not
    canonical and names that collide without case are problems; each is named, none is followed or opened.
    """
    found = Inventory(Files(root))
    try:
        _directory(root, "", 0, found)
    except _TooMuch as error:
        found.problems.append(str(error))
        found.complete = False
    for name in layout.collisions(found.files):
        found.problems.append(f"{name!r}: several names differ only in case")
    return found


def _directory(path: Path, prefix: str, depth: int, found: Inventory) -> None:
    try:
        with os.scandir(path) as entries:
            children = sorted(islice(entries, MAX_ENTRIES + 1 - found.entries), key=lambda entry: entry.name)
    except OSError as error:
        found.problems.append(f"{prefix or '.'!r}: directory cannot be read ({error.strerror})")
        return
    found.entries += len(children)
    if found.entries > MAX_ENTRIES:
        raise _TooMuch(f"{prefix or '.'!r}: beyond the limit of {MAX_ENTRIES} files and directories")
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
        elif not entry.is_file(follow_symlinks=False):
            found.problems.append(f"{name!r}: {'symbolic link' if entry.is_symlink() else 'not a regular file'}")
        elif len(found.files) >= MAX_FILES or found.total > MAX_PACK_BYTES:
            raise _TooMuch(f"{name!r}: beyond the limit of {MAX_FILES} files or {MAX_PACK_BYTES} bytes")
        else:
            _file(path / entry.name, name, found)


def _file(path: Path, name: str, found: Inventory) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with _opened(path) as stream:
            while piece := stream.read(min(_CHUNK, MAX_FILE_BYTES + 1 - size)):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        found.problems.append(f"{name!r}: cannot be read ({error.strerror})")
    except _Refused as error:
        found.problems.append(f"{name!r}: {error}")
    else:
        found.total += size
        if size > MAX_FILE_BYTES:
            found.problems.append(f"{name!r}: grew beyond {MAX_FILE_BYTES} bytes while it was read")
        else:
            found.files.digests[name] = digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened for reading without following links; the checks are on what was opened."""
    # O_NOFOLLOW refuses links, O_NONBLOCK keeps a pipe from blocking
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if problem := _shape_problem(os.fstat(handle)):
            raise _Refused(problem)
        with os.fdopen(handle, "rb", closefd=False) as stream:
            yield stream
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

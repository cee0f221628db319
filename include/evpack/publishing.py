"""Publishing that is all or nothing: a reader never sees half a file or directory.

Each writer works under a temporary name beside its target, flushes it to the device, and publishes by a rename or link
that never replaces what is already there. What killed writers left goes with the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evpack.errors import DiskFull

_NAME_KEPT = 200
"""Characters of a file's name that its temporary name keeps: the longest step ids fill a file system's 255."""

_HOST_KEPT = 32
"""Characters of a host's name in a temporary name."""


class AlreadyPublished(FileExistsError):
    """The target exists already: another attempt finished first."""


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write a file so that readers see either nothing, the old or the whole new content.

    Args:
        replace: False refuses to touch an existing file.

    Raises:
        AlreadyPublished: with replace=False when the file exists.
        DiskFull: when the device has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:_NAME_KEPT]}.tmp.{uuid.uuid4().hex}")
    try:
        with disk_errors(path):
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        if replace:
            part.replace(path)
        else:
            try:
                os.link(part, path)
            except FileExistsError as error:
                raise AlreadyPublished(errno.EEXIST, "exists already", str(path)) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def publishing(target: Path, label: str = "0") -> Iterator[Path]:
    """A fresh directory that becomes `target` when the block ends well, and vanishes otherwise.

    Publishing is one rename that never replaces: when `target` exists by then, the work is discarded and
    `AlreadyPublished` raised. The caller decides whether that is fine (another attempt finished first).

    Args:
        target: the directory to create; its parent is created when missing.
        label: part of the temporary name, for people who look (the try number).

    Raises:
        AlreadyPublished: when the target exists.
        DiskFull: when the device has no room.
    """
    if target.exists():
        raise AlreadyPublished(errno.EEXIST, "exists already", str(target))
    with beside(target, label) as part:
        yield part
        fsync_tree(part)
        try:
            part.rename(target)  # POSIX: fails on a directory that is not empty
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyPublished(errno.EEXIST, "exists already", str(target)) from error
            raise
        _fsync_directory(target.parent)


@contextmanager
def beside(target: Path, label: str) -> Iterator[Path]:
    """A fresh directory beside `target` that is gone after the block, unless it was renamed.

    It is held by a lock, which ends with the process: what killed processes of this host left for this target goes
    first. Its name says the host, for a directory's lock need not reach over hosts that share it.

    Args:
        target: need not exist; its parent is created when missing.
        label: part of the name, for people who look.

    Raises:
        DiskFull: when the device has no room.
    """
    sweep_beside(target)
    part, handle = _held(target, label)
    try:
        with disk_errors(target):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(handle)


def sweep_beside(target: Path) -> None:
    """Remove the directories that `beside` made on this host for a target and whose process is gone."""
    made = re.compile(rf"{re.escape(target.name)}\.tmp\.\w+\.{_host()}\.[0-9a-f]{{32}}")
    for left in target.parent.iterdir() if target.parent.is_dir() else ():
        if made.fullmatch(left.name):
            with suppress(OSError):  # held, gone, or of somebody else
                handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    os.close(handle)


def temporary(target: Path, label: str) -> Path:
    """A free name beside a target that `sweep_beside` knows.

    Args:
        label: part of the name, for people who look.
    """
    return target.with_name(f"{target.name}.tmp.{label}.{_host()}.{uuid.uuid4().hex}")


def _host() -> str:
    """The host's part of a temporary name."""
    return re.sub(r"\W", "_", socket.gethostname())[:_HOST_KEPT]


def _held(target: Path, label: str) -> tuple[Path, int]:
    """A fresh directory beside a target, and the open handle that holds it."""
    while True:
        part = temporary(target, label)
        part.mkdir(parents=True)
        with suppress(FileNotFoundError):  # somebody swept it before it was held
            handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if part.exists():
                return part, handle
            os.close(handle)


def fsync_tree(root: Path) -> None:
    """Flush a file, or every file and directory below a directory, to the device."""
    paths = [root] if root.is_file() else [*root.rglob("*"), root]
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold a place against other processes that ask for the same; they wait. Ends with the process.

    Args:
        place: an existing directory, which holds against processes of this host; or a file, made where there is none,
            which does so over all hosts that share it (NFS passes on locks of files, not of directories).
    """
    handle = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def disk_errors(what: Path | str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into `DiskFull` naming what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left while writing {what}", "free some space on that file system and resume the campaign"
            ) from error
        raise


def _fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files that must be exactly those that were promised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evpack.errors import IntegrityError
from evpack.files import sha256_file, tree_digests


def check_file(path: Path, sha256: str, mend: str) -> None:
    """Compare one file with its promised digest.

    Args:
        sha256: 64 hex characters.
        mend: what the reader of the error should do.

    Raises:
        IntegrityError: naming the file, its digest and the promised one.
    """
    found = sha256_file(path)
    if found != sha256:
        raise IntegrityError(f"{path}: sha256 is {found}, expected {sha256}", mend)


def check_tree(root: Path, expected: Mapping[str, str], mend: str) -> None:
    """Compare all files below a directory with their promised digests; no file may be missing or added.

    Args:
        expected: POSIX path relative to `root` -> 64 hex characters.
        mend: what the reader of the error should do.

    Raises:
        IntegrityError: naming the first file that differs, its digest and the promised one.
    """
    found = tree_digests(root)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise IntegrityError(
                f"{root / name}: sha256 is {found.get(name, '(no such file)')}, "
                f"expected {expected.get(name, '(no such file)')}",
                mend,
            )

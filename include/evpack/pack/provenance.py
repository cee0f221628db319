"""Where a campaign's code came from and on what machine its pack was built. Incomplete provenance is an error."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from evpack.errors import BadInput, EvidenceError, EvpackError, MissingFile
from evpack.files import expanded, parse_json, utc_now

SOURCE_ENV = "EVPACK_SOURCE_REPO"
"""Names a complete source_repo.json, for installations without a git checkout."""

BAKED = Path(__file__).with_name("source_repo.json")
"""Provenance put into a wheel or an image when it is built; absent in a checkout."""

NO_IMAGE = "none"
"""What a runtime manifest names where no container ran: the format wants a text for `image_ref`, never null."""

_FIELDS = ("uri", "commit", "branch", "describe", "dirty", "recorded_at")
_MEND = (
    f"run from a git checkout, or set {SOURCE_ENV} to a complete source_repo.json "
    f"({', '.join(_FIELDS)}), or install a build that carries one"
)
_GIT_SECONDS = 60
"""A git query on a healthy checkout takes milliseconds; a longer one means a hung file system."""

_PACKAGES = ("evpack", "torch", "transformers", "numpy", "scipy", "safetensors", "apache-airflow", "cryptography")


def collect_source_repo(start: Path, *, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The source_repo.json value: from the file that EVPACK_SOURCE_REPO names, else the installed build, else git.

    Args:
        start: a directory of this project that the checkout tracks (a checkout that merely surrounds an
            installation says nothing about its code).

    Returns:
        ``{uri, commit (40 hex), branch, describe, dirty, recorded_at}``; uri is null where the checkout has no
        remote, branch is null on a detached head.

    Raises:
        BadInput: when none of the three sources gives a complete answer.
    """
    named = (os.environ if environ is None else environ).get(SOURCE_ENV, "").strip()
    if named:
        path = expanded(named)
        if not path.is_file():
            raise MissingFile(f"{SOURCE_ENV} names {named!r}, which does not exist", _MEND)
        return check_source_repo(path.read_bytes(), named)
    if BAKED.is_file():
        return check_source_repo(BAKED.read_bytes(), BAKED.name)
    if not _git(start, "ls-files", "--", "."):
        raise BadInput(f"the git checkout around {start} does not track this project", _MEND)
    remote = _git(start, "remote").splitlines()
    head = _git(start, "rev-parse", "--abbrev-ref", "HEAD")
    return {
        "uri": _public_uri(_git(start, "remote", "get-url", "origin" if "origin" in remote else remote[0]))
        if remote
        else None,
        "commit": _git(start, "rev-parse", "HEAD"),
        "branch": None if head == "HEAD" else head,
        "describe": _git(start, "describe", "--always", "--dirty", "--tags"),
        "dirty": bool(_git(start, "status", "--porcelain", "--untracked-files=no")),
        "recorded_at": utc_now(),
    }


def check_source_repo(data: bytes, name: str) -> dict[str, Any]:
    """Parse a source_repo.json and check that it is complete.

    Raises:
        BadInput: naming the file and the field.
    """
    try:
        value = parse_json(data, name)
    except EvidenceError as error:
        raise BadInput(error.what, _MEND) from error
    missing = [field for field in _FIELDS if not isinstance(value, dict) or field not in value]
    if missing:
        raise BadInput(f"{name} lacks {', '.join(missing)}", _MEND)
    if not isinstance(value["commit"], str) or not re.fullmatch("[0-9a-f]{40}", value["commit"]):
        raise BadInput(f"{name}: commit {value['commit']!r:.80} is not 40 hex digits", _MEND)
    if not isinstance(value["dirty"], bool):
        raise BadInput(f"{name}: dirty {value['dirty']!r:.80} is neither true nor false", _MEND)
    return dict(value)


def environment() -> dict[str, Any]:
    """The environment.json value of this machine, without importing torch."""
    return {
        "recorded_at": utc_now(),
        "platform": platform.platform(),
        "python_version": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        **_devices(),
    }


def _git(start: Path, *query: str) -> str:
    # variables such as GIT_DIR would answer for another repository
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(start), *query],
            env=environ,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise BadInput("git is not installed, so the campaign's source cannot be named", _MEND) from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"`git {query[0]}` did not answer within {_GIT_SECONDS} s in {start}", _MEND) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise BadInput(f"`git {query[0]}` failed in {start}: {reason}", _MEND)
    return done.stdout.strip()


def _public_uri(remote: str) -> str:
    """A remote without credentials, and without the directories of a local one."""
    if "://" not in remote:
        local = remote.startswith(("/", ".", "~"))
        return f"file:{Path(remote).name}" if local else remote
    parts = urlsplit(remote)
    if parts.scheme == "file":
        return f"file:{Path(parts.path).name}"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    """The host's real accelerators, described by the first; the same keys with null when there are none.

    No number either where the driver does not answer: planning for devices is refused there in any case.
    """
    from evpack.plan.nvml import read_devices  # a build of this package reads this module and has no pydantic

    try:
        devices = read_devices({})
    except EvpackError:
        devices = None
    first = devices[0] if devices else None
    return {
        "gpu_name": first and first.name,
        "gpu_count": None if devices is None else len(devices),
        "gpu_memory_gb": first and round(first.memory_gb, 1),
        "fp8_native_support": first is not None and first.has_fp8,
        "driver_version": first and first.driver,
    }

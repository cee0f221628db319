"""Bytes and what they mean: canonical JSON, digests, paths, times. Nothing here knows what a campaign is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evpack.errors import BadInput, EvidenceError
from evpack.publishing import write_atomic

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import ValidationError

_HASH_CHUNK = 1 << 20
"""Bytes read at a time while hashing; large enough that the hash, not the call, is the cost."""

GB = 1e9
"""Bytes in one; everywhere."""

WORLD_READABLE = 0o644
"""Mode of published weights, which a container's user must be able to read."""

MAX_JSON_BYTES = 64 << 20
"""Largest JSON document that is parsed; the largest real one (a plan of 64 models) is below 8 MB."""

MAX_JSON_DEPTH = 64
"""Deepest nesting that is parsed; the deepest real document (a report) has about 8 levels."""

Json = Any
"""A value of `json.loads`: None, bool, int, float, str, list or dict."""


def canonical_json(value: Json) -> bytes:
    """Key-sorted, compact, ASCII JSON with a newline: equal values give equal bytes.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot carry (store null and a reason instead).
    """
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def pretty_json(value: Json) -> bytes:
    """Key-sorted, indented JSON with a newline, for files that people open.

    Raises:
        ValueError: for NaN or infinity.
    """
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8")


def first_fault(error: ValidationError) -> str:
    """The first thing that a schema found wrong in a document: its place, and what."""
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'document'}: {detail['msg']}"


def finite_or_none(value: float | None) -> float | None:
    """A float as JSON may carry it: None in place of NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that is half of a character: a document with one may hold text that no encoding has."""

_CONTAINERS = frozenset({dict, list})


def parse_json(data: bytes, name: str, limit: int = MAX_JSON_BYTES) -> Json:
    """Parse strict JSON: UTF-8 without BOM, no half characters, no duplicate keys, no NaN, bounded size and depth.

    Args:
        data: the bytes that were hashed, never a second read of the file.
        name: what to call the document in an error.

    Raises:
        EvidenceError: naming the document and the fault.
    """
    if len(data) > limit:
        raise EvidenceError(f"{name}: more bytes of JSON than the limit of {limit}")
    if data.startswith(b"\xef\xbb\xbf"):
        raise EvidenceError(f"{name}: starts with a byte order mark")

    def no_constant(token: str) -> NoReturn:
        raise EvidenceError(f"{name}: {token} is not a JSON number")

    def finite(token: str) -> float:
        number = float(token)
        if not math.isfinite(number):
            raise EvidenceError(f"{name}: {token} overflows a 64-bit float")
        return number

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise EvidenceError(f"{name}: key {twice!r} stands twice in one object")
        return result

    def loaded(parse_float: Callable[[str], float] | None) -> Json:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant, parse_float=parse_float)

    try:
        value = loaded(None)  # json's own floats: several times faster than asking for each one
        too_deep, overflows = _examined(value, MAX_JSON_DEPTH)
        if overflows:
            loaded(finite)
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{name}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise EvidenceError(f"{name}: not JSON: {error.msg} at line {error.lineno}") from error
    except RecursionError as error:
        raise EvidenceError(f"{name}: JSON nested too deeply") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise EvidenceError(f"{name}: {error}") from error
    if too_deep:
        raise EvidenceError(f"{name}: JSON nested deeper than {MAX_JSON_DEPTH} levels")
    if _SURROGATE.search(data) and not _encodable(value):
        raise EvidenceError(f"{name}: half of a surrogate pair, which is no character")
    return value


def _encodable(value: Json) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _examined(value: Json, limit: int) -> tuple[bool, bool]:
    """Whether containers nest deeper than `limit`, and whether a float is infinite; level by level, no recursion."""
    level, infinite = [[value]], False
    for _ in range(limit + 1):
        deeper: list[Any] = []
        for node in level:
            children = node.values() if isinstance(node, dict) else node
            kinds = set(map(type, children))
            infinite = infinite or (float in kinds and (math.inf in children or -math.inf in children))
            if not _CONTAINERS.isdisjoint(kinds):
                deeper += [child for child in children if type(child) in _CONTAINERS]
        level = deeper
    return bool(level), infinite


def portable(value: Json) -> Json:
    """The same value with every absolute path cut to its last name: what may leave this machine.

    Digests of campaigns are taken over this form, so that the copy that left has the digest of the original.
    """
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value


def read_json(path: Path) -> Json:
    """`parse_json` of a whole file.

    Raises:
        FileNotFoundError: when the file is not there.
        EvidenceError: when it is not strict JSON, or no file.
    """
    return parse_json(read_regular(path), str(path))


def read_regular(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file, of a longer one than the limit only as many as show that.

    Raises:
        EvidenceError: when it is something else: a pipe, which may never end, a device, a directory.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise EvidenceError(f"{path}: is no file")
        with os.fdopen(handle, "rb", closefd=False) as stream:
            return stream.read(limit + 1)
    finally:
        os.close(handle)


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes (64 characters, no prefix)."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(_HASH_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def digest_json(value: Json) -> str:
    """Hex SHA-256 of the canonical JSON of a value."""
    return sha256_bytes(canonical_json(value))


def tree_digests(root: Path) -> dict[str, str]:
    """SHA-256 of every regular file below `root` (or of `root` itself), keyed by POSIX relative path, sorted."""
    if root.is_file():
        return {root.name: sha256_file(root)}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in files}


def write_json(path: Path, value: Json, *, replace: bool = True) -> None:
    """`write_atomic` of pretty JSON."""
    write_atomic(path, pretty_json(value), replace=replace)


def expanded(text: str) -> Path:
    """A path that a person wrote, a leading ``~`` or ``~user`` resolved.

    Raises:
        BadInput: when there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BadInput(f"{text!r} begins with a user that this host does not know", "write the whole path") from None


def utc_now() -> str:
    """The current time as ISO 8601 UTC with seconds, e.g. ``2026-11-23T14:50:00Z``."""
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_time(text: Any) -> datetime | None:
    """A time in ISO 8601 with a time zone, None for anything else."""
    from datetime import datetime

    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else None

"""Which signers a verifier accepts: fingerprints that come from outside the pack, never from inside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evpack.errors import BadInput, EvidenceError, MissingFile
from evpack.files import Json, parse_json, read_regular
from evpack.pack import keys

Authenticity = Literal["pinned", "unpinned", "mismatch", "unsigned"]
"""pinned: signed by a trusted key; unpinned: signed, nothing to compare with; mismatch: signed by another key."""

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_MEND = "give a public key in PEM form or a fingerprint sha256:<64 hex digits>"


@dataclass(frozen=True)
class Trust:
    """Accepted signers; empty when the caller named none."""

    fingerprints: frozenset[str] = frozenset()

    def judge(self, signer: str | None) -> Authenticity:
        """How a signer (fingerprint, None when unsigned) stands to the accepted ones."""
        if signer is None:
            return "unsigned"
        if not self.fingerprints:
            return "unpinned"
        return "pinned" if signer in self.fingerprints else "mismatch"


def collect(
    *,
    trusted_keys: Iterable[Path] = (),
    fingerprints: Iterable[str] = (),
    store: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Trust:
    """Everything the caller trusts; without any of the three, the user's default store when it exists.

    Args:
        trusted_keys: files with a public key (PEM) or a fingerprint.
        fingerprints: fingerprints themselves.
        store: a trust store; JSON list, or object with `trusted_signers` or `fingerprints`; entries are
            fingerprints or objects with one.

    Raises:
        BadInput: naming the file or value that cannot be used.
    """
    accepted = {_fingerprint(text, "the expected fingerprint") for text in fingerprints}
    accepted |= {_key_file(path) for path in trusted_keys}
    if store is not None:
        accepted |= _store(store)
        if not accepted:  # whoever names a store means to trust somebody; nobody would pass for no choice at all
            raise BadInput(f"trust store {store} names no signer", _MEND)
    elif not accepted:
        default = default_store(os.environ if environ is None else environ)
        if default is not None and default.is_file():
            accepted |= _store(default)
    return Trust(frozenset(accepted))


def default_store(environ: Mapping[str, str]) -> Path | None:
    """``$XDG_CONFIG_HOME/evpack/trusted_keys.json`` (``~/.config`` without it), None without a home."""
    config = environ.get("XDG_CONFIG_HOME") or (f"{environ['HOME']}/.config" if environ.get("HOME") else "")
    return Path(config) / "evpack" / "trusted_keys.json" if config.startswith("/") else None


def _fingerprint(text: str, what: str) -> str:
    value = text.strip().lower()
    if not _FINGERPRINT.fullmatch(value):
        raise BadInput(f"{what} is not a fingerprint: {text.strip()[:80]!r}", _MEND)
    return value


def _key_file(path: Path) -> str:
    data = _read(path, "trusted key")
    if b"PRIVATE KEY" in data:
        raise BadInput(f"trusted key {path} holds a private key", "give the public half (<name>.pub.pem) only")
    if data.count(b"-----BEGIN ") > 1:
        raise BadInput(f"trusted key {path} holds several keys", "give each in a file of its own")
    if data.lstrip().startswith(b"sha256:"):
        return _fingerprint(data.decode("ascii", "replace"), f"the content of trusted key {path}")
    try:
        return keys.fingerprint(keys.parse_public_pem(data))
    except ValueError as error:
        raise BadInput(f"trusted key {path} is {error}", _MEND) from error


def _store(path: Path) -> set[str]:
    try:
        value: Json = parse_json(_read(path, "trust store"), str(path))
    except EvidenceError as error:
        raise BadInput(f"trust store {error.what}", "write a JSON list of fingerprints") from error
    if isinstance(value, dict):
        value = value.get("trusted_signers", value.get("fingerprints"))
    if not isinstance(value, list):
        raise BadInput(
            f"trust store {path} is neither a list nor an object with trusted_signers or fingerprints",
            "write a JSON list of fingerprints",
        )
    found = set()
    for entry in value:
        text = entry.get("fingerprint") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise BadInput(f"trust store {path} has an entry without a fingerprint: {entry!r:.80}", _MEND)
        found.add(_fingerprint(text, f"an entry of trust store {path}"))
    return found


def _read(path: Path, what: str) -> bytes:
    try:
        data = read_regular(path, keys.MAX_KEY_BYTES)
    except FileNotFoundError as error:
        raise MissingFile(f"{what} {path} does not exist", "check the path") from error
    except EvidenceError as error:
        raise BadInput(f"{what} {error.what}", "check the path") from error
    except OSError as error:
        raise BadInput(f"{what} {path} cannot be read ({error.strerror})", "check the path and its mode") from error
    if len(data) > keys.MAX_KEY_BYTES:
        raise BadInput(f"{what} {path} is larger than {keys.MAX_KEY_BYTES} bytes", _MEND)
    return data

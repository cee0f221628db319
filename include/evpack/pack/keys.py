"""Ed25519 signing keys on disk: the deployment's own, an operator's, and new pairs. No message shows key material."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evpack.errors import BadInput, MissingFile
from evpack.home import Home
from evpack.publishing import AlreadyPublished, write_atomic
from evpack.sealed import check_outside

MAX_KEY_BYTES = 16 << 10
"""Largest key file that is read; an Ed25519 PEM has 119 bytes."""

_DEPLOYMENT_KEY = "signing_key"

_FIELD = 2**255 - 19
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_LOW_ORDER = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})
"""y coordinates of the eight points whose order divides 8 (y = 0, y^2 = 1, d y^4 + 2 y^2 = 1). With such a
key a signature can be made that fits any message, and OpenSSL accepts it."""


def fingerprint(key: Ed25519PublicKey) -> str:
    """``sha256:<hex>`` of the raw 32 bytes of a public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def public_pem(key: Ed25519PublicKey) -> str:
    """SubjectPublicKeyInfo PEM of a public key."""
    encoded = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded.decode("ascii")


def parse_public_pem(data: bytes) -> Ed25519PublicKey:
    """The public key in SubjectPublicKeyInfo PEM bytes.

    Raises:
        ValueError: when the bytes are no such key (the text shows no content).
    """
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("not a public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 public key")
    y = int.from_bytes(key.public_bytes_raw(), "little") & (2**255 - 1)
    if y >= _FIELD or y in _LOW_ORDER:
        raise ValueError("an Ed25519 point of low order or in a second spelling, whose signatures prove nothing")
    return key


def load_private(path: Path) -> Ed25519PrivateKey:
    """The private key in a PKCS8 PEM file that only its owner can read.

    Raises:
        MissingFile: when there is no such file.
        BadInput: when others can read it, or it is no unencrypted Ed25519 PKCS8 PEM.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingFile(f"signing key {path} does not exist", "make one with `evpack keygen`") from error
    except OSError as error:
        raise BadInput(f"signing key {path} cannot be read ({error.strerror})", "check owner and mode") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"signing key {path} is not a regular file", "give the path of a PEM file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise BadInput(f"signing key {path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
        data = os.read(handle, MAX_KEY_BYTES + 1)
    finally:
        os.close(handle)
    mend = "make one with `evpack keygen` or `openssl genpkey -algorithm ed25519`"
    if len(data) > MAX_KEY_BYTES or not data.lstrip().startswith(b"-----BEGIN PRIVATE KEY-----"):
        raise BadInput(f"signing key {path} is not an unencrypted PKCS8 PEM", mend)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(f"signing key {path} is not a valid private key", mend) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"signing key {path} is not an Ed25519 key", mend)
    return key


def public_path(private: Path) -> Path:
    """Where the public half of a private key file stands: ``<stem>.pub.pem`` beside it."""
    return private.with_name(private.name.removesuffix(".pem") + ".pub.pem")


def write_keypair(private: Path) -> str:
    """Make a new pair: `private` (PKCS8 PEM, mode 0600) and `public_path(private)`; returns the fingerprint.

    Raises:
        BadInput: when either file exists (keys are never overwritten), cannot be written or would lie in a pack.
    """
    if not private.name:
        raise BadInput(f"{str(private)!r} is no name for a key", "give a file name")
    check_outside(private, "signing key")
    public = public_path(private)
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise _overwrites(path)
    key = Ed25519PrivateKey.generate()
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        write_atomic(private, encoded, mode=0o600, replace=False)
        write_atomic(public, public_pem(key.public_key()).encode("ascii"), replace=False)
    except AlreadyPublished as error:
        raise _overwrites(Path(error.filename)) from error
    except OSError as error:
        raise BadInput(f"{private} cannot be written ({error.strerror})", "choose a writable directory") from error
    return fingerprint(key.public_key())


def deployment_key_path(home: Home) -> Path:
    """Where the private key of this deployment is, or will be."""
    return home.keys / _DEPLOYMENT_KEY


def deployment_key(home: Home) -> Path:
    """The private key of this deployment, made on first use in EVPACK_HOME/keys (directory 0700, file 0600).

    Raises:
        BadInput: when the directory cannot be written or the key in it is unusable.
    """
    home.create()
    home.keys.mkdir(mode=0o700, exist_ok=True)
    home.keys.chmod(0o700)
    private = deployment_key_path(home)
    if not private.exists():
        try:
            write_keypair(private)
        except BadInput:
            if not private.exists():  # otherwise another campaign made it a moment ago
                raise
    public = public_path(private)
    if not public.exists():
        write_atomic(public, public_pem(load_private(private).public_key()).encode("ascii"))
    return private


def _overwrites(path: Path) -> BadInput:
    return BadInput(f"{path} exists already, and keys are never overwritten", "choose another name")

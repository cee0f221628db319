"""manifest.signature.json: an Ed25519 signature over the exact bytes of manifest.json.

The bundle carries its public key, so a valid signature proves that one holder of one key sealed these bytes,
never who that was: `trust` compares the fingerprint with keys from outside. There is one spelling of a bundle
(canonical JSON, PEM and base64); any other is refused, so that no byte of a pack can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evpack.errors import EvidenceError, IntegrityError
from evpack.files import canonical_json, parse_json
from evpack.pack import keys, layout

FORMAT = "evidence-pack-signature-v1"
MAX_BUNDLE_BYTES = 16 << 10
"""Largest bundle that is parsed; a real one has about 450 bytes."""


@dataclass(frozen=True)
class Bundle:
    """A parsed signature bundle; the signature is not checked yet."""

    key: Ed25519PublicKey
    signature: bytes

    @property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` of the raw public key."""
        return keys.fingerprint(self.key)

    def check(self, manifest: bytes) -> None:
        """Check the signature over the bytes of manifest.json.

        Raises:
            IntegrityError: when it is not this key's signature of these bytes.
        """
        try:
            self.key.verify(self.signature, manifest)
        except InvalidSignature as error:
            raise IntegrityError(
                f"{layout.SIGNATURE}: the signature does not belong to this {layout.MANIFEST}"
            ) from error


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The bundle's bytes for the bytes of manifest.json."""
    return _render(key.public_key(), key.sign(manifest))


def parse(data: bytes) -> Bundle:
    """Parse a bundle strictly.

    Raises:
        EvidenceError: when it is not the one canonical spelling of a bundle.
    """
    value = parse_json(data, layout.SIGNATURE, MAX_BUNDLE_BYTES)
    try:
        key = keys.parse_public_pem(value["public_key"]["value"].encode("ascii"))
        signature = base64.b64decode(value["signature"]["value"].encode("ascii"), validate=True)
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise EvidenceError(f"{layout.SIGNATURE}: not an {FORMAT} bundle with an Ed25519 key ({error})") from error
    if data != _render(key, signature):
        raise EvidenceError(
            f"{layout.SIGNATURE}: not the canonical form of an {FORMAT} bundle (format, algorithm, fingerprint, "
            "key and signature, sorted, on one line)"
        )
    return Bundle(key, signature)


def _render(key: Ed25519PublicKey, signature: bytes) -> bytes:
    return canonical_json(
        {
            "format": FORMAT,
            "algorithm": "ed25519",
            "signing_key_fingerprint": keys.fingerprint(key),
            "public_key": {"encoding": "pem", "value": keys.public_pem(key)},
            "signature": {"encoding": "base64", "value": base64.b64encode(signature).decode("ascii")},
        }
    )

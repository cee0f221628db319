"""Signature bundles: published vectors, one spelling, and nothing else accepted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import EvidenceError, EvpackError, IntegrityError
from evpack.files import canonical_json
from evpack.pack import keys, signature

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MANIFEST = b'{"format": "evidence-pack-v1"}\n'
BUNDLE = signature.sign(MANIFEST, KEY)

# RFC 8032, section 7.1: secret key, public key, message, signature of tests 1 to 3
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point; S + ORDER verifies where a library forgets to bound S."""


def edited(change: Any) -> bytes:
    value = json.loads(BUNDLE)
    change(value)
    return canonical_json(value)


@pytest.mark.parametrize(("secret", "public", "message", "expected"), RFC_8032)
def test_the_library_in_use_signs_as_published(secret: str, public: str, message: str, expected: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert key.public_key().public_bytes_raw().hex() == public
    bundle = signature.parse(signature.sign(bytes.fromhex(message), key))
    assert bundle.signature.hex() == expected


def test_a_second_form_of_a_signature_is_refused() -> None:
    good = signature.parse(BUNDLE).signature
    shifted = int.from_bytes(good[32:], "little") + ORDER
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(good[:32] + shifted.to_bytes(32, "little"), MANIFEST)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_a_wrong_length_is_refused(size: int) -> None:
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(bytes(size), MANIFEST)


def test_a_bundle_names_its_key_and_holds_for_these_bytes_only() -> None:
    bundle = signature.parse(BUNDLE)
    bundle.check(MANIFEST)
    assert bundle.fingerprint == keys.fingerprint(KEY.public_key())
    with pytest.raises(IntegrityError, match="does not belong"):
        bundle.check(MANIFEST + b" ")


def test_a_bundle_is_one_sorted_line() -> None:
    value = json.loads(BUNDLE)
    assert BUNDLE.count(b"\n") == 1 and list(value) == sorted(value)
    assert value["format"] == "evidence-pack-signature-v1" and value["algorithm"] == "ed25519"
    assert keys.parse_public_pem(value["public_key"]["value"].encode()) == KEY.public_key()
    assert len(base64.b64decode(value["signature"]["value"])) == 64


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"null\n",
        BUNDLE[:-1],
        BUNDLE + BUNDLE,
        BUNDLE.replace(b'"algorithm":', b'"algorithm": '),
        b"\xef\xbb\xbf" + BUNDLE,
        BUNDLE.replace(b"\n", b"\r\n"),
        b" " * (signature.MAX_BUNDLE_BYTES + 1),
        edited(lambda v: v.update(algorithm="rsa")),
        edited(lambda v: v.update(format="evidence-pack-signature-v2")),
        edited(lambda v: v.update(extra=1)),
        edited(lambda v: v.update(signatures=[v["signature"], v["signature"]])),
        edited(lambda v: v.update(signing_key_fingerprint="sha256:" + "0" * 64)),
        edited(lambda v: v["public_key"].update(encoding="der")),
        edited(lambda v: v["public_key"].update(value="nothing")),
        edited(lambda v: v["public_key"].update(value=None)),
        edited(lambda v: v["public_key"].update(value=v["public_key"]["value"] + "\n")),
        edited(lambda v: v["signature"].update(value="!!!")),
        edited(lambda v: v["signature"].update(value=["a"])),
        edited(lambda v: v["signature"].update(value=v["signature"]["value"][:-3] + "B==")),
        edited(lambda v: v.update(signature=7)),
        BUNDLE.replace(b'{"algorithm"', b'{"algorithm":"ed25519","algorithm"'),
    ],
)
def test_any_other_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match=r"manifest\.signature\.json"):
        signature.parse(data)


@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_no_byte_of_a_bundle_can_change(position: int, change: int) -> None:
    data = bytearray(BUNDLE)
    data[position] ^= change
    with pytest.raises(EvpackError):
        signature.parse(bytes(data)).check(MANIFEST)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_a_typed_error(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        signature.parse(data)

"""Ed25519 at its edges, computed here: what must verify verifies, what must not does not, in the library in use."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evpack.errors import EvpackError
from evpack.files import canonical_json
from evpack.pack import keys
from evpack.pack.signature import parse

FIELD = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, FIELD - 2, FIELD) % FIELD
Point = tuple[int, int]


def add(one: Point, two: Point) -> Point:
    """Sum of two points of the curve -x^2 + y^2 = 1 + d x^2 y^2."""
    (x1, y1), (x2, y2) = one, two
    k = D * x1 * x2 * y1 * y2 % FIELD
    return (
        (x1 * y2 + x2 * y1) * pow(1 + k, FIELD - 2, FIELD) % FIELD,
        (y1 * y2 + x1 * x2) * pow(1 - k, FIELD - 2, FIELD) % FIELD,
    )


def times(factor: int, point: Point) -> Point:
    result: Point = (0, 1)
    while factor:
        if factor & 1:
            result = add(result, point)
        point, factor = add(point, point), factor >> 1
    return result


def point(y: int) -> Point | None:
    """A point with this y, when there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, FIELD - 2, FIELD) % FIELD
    root = pow(square, (FIELD + 3) // 8, FIELD)
    if (root * root - square) % FIELD:
        root = root * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    return (root, y) if (root * root - square) % FIELD == 0 else None


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def low_order() -> set[Point]:
    found: set[Point] = set()
    for start in filter(None, map(point, itertools.count(2))):
        found |= {times(k, times(ORDER, start)) for k in range(8)}
        if len(found) == 8:
            return found
    raise AssertionError


BASE = point(4 * pow(5, FIELD - 2, FIELD) % FIELD)
assert BASE is not None
BASE = BASE if BASE[0] % 2 == 0 else (FIELD - BASE[0], BASE[1])
LOW = low_order()
SPELLINGS = sorted(
    {
        (other | sign << 255).to_bytes(32, "little")
        for _, y in LOW
        for other in ({y, y + FIELD} if y + FIELD < 2**255 else {y})
        for sign in (0, 1)
    }
)
SECRET, NONCE, MESSAGE = 0x1234567890ABCDEF << 190, 987654321, b"manifest"
PUBLIC = encode(times(SECRET % ORDER, BASE))


def challenge(r: bytes, public: bytes = PUBLIC, message: bytes = MESSAGE) -> int:
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % ORDER


def signature(s_shift: int = 0, r_shift: Point = (0, 1)) -> bytes:
    """A signature of MESSAGE by SECRET; with shifts, one that only a careless verifier accepts."""
    r = encode(add(times(NONCE, BASE), r_shift))
    s = (NONCE + challenge(r) * SECRET) % ORDER + s_shift
    return r + s.to_bytes(32, "little")


def accepts(data: bytes, public: bytes = PUBLIC, message: bytes = MESSAGE) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(data, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def pem(raw: bytes) -> bytes:
    return keys.public_pem(Ed25519PublicKey.from_public_bytes(raw)).encode()


def test_a_signature_made_by_hand_verifies() -> None:
    assert accepts(signature())


@pytest.mark.parametrize("multiple", range(1, 15))
def test_s_beyond_the_order_is_refused(multiple: int) -> None:
    assert not accepts(signature(s_shift=multiple * ORDER))


@pytest.mark.parametrize("shift", sorted(LOW - {(0, 1)}))
def test_r_with_a_low_order_part_is_refused(shift: Point) -> None:
    assert not accepts(signature(r_shift=shift))


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 63, 65, 96, 128])
def test_other_lengths_are_refused(size: int) -> None:
    assert not accepts((signature() * 2)[:size])


@pytest.mark.parametrize("bit", range(0, 512, 7))
def test_every_bit_counts(bit: int) -> None:
    data = bytearray(signature())
    data[bit // 8] ^= 1 << bit % 8
    assert not accepts(bytes(data))


def test_parts_that_say_nothing_are_refused() -> None:
    good = signature()
    for data in (bytes(64), b"\xff" * 64, good[:32] + bytes(32), bytes(32) + good[32:], good[32:] + good[:32]):
        assert not accepts(data)
    assert not accepts(good, message=b"") and not accepts(good, message=MESSAGE + b"\x00")


@pytest.mark.parametrize("r", SPELLINGS)
def test_r_of_low_order_is_refused(r: bytes) -> None:
    assert not accepts(r + bytes(32)) and not accepts(r + signature()[32:])


@pytest.mark.parametrize("raw", SPELLINGS)
def test_keys_of_low_order_are_no_keys(raw: bytes) -> None:
    """The library takes them, and signatures that fit any message with them; the pack room does not."""
    with pytest.raises(ValueError, match="prove nothing"):
        keys.parse_public_pem(pem(raw))


def test_the_danger_is_real() -> None:
    identity = encode((0, 1))
    assert accepts(identity + bytes(32), public=identity, message=b"anything at all")


def test_ordinary_keys_are_keys() -> None:
    for number in range(1, 20):
        public = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32).public_key()
        assert keys.parse_public_pem(pem(public.public_bytes_raw())).public_bytes_raw() == public.public_bytes_raw()


VECTORS = json.loads(Path(__file__).with_name("ed25519_vectors.json").read_bytes())["vectors"]


def bundle(public: bytes, data: bytes) -> bytes:
    """A signature bundle as `evidence-pack-signature-v1` writes it, made without asking whether anything is right."""
    der = bytes.fromhex("302a300506032b6570032100") + public
    pem_lines = ["-----BEGIN PUBLIC KEY-----", base64.b64encode(der).decode(), "-----END PUBLIC KEY-----", ""]
    return canonical_json(
        {
            "format": "evidence-pack-signature-v1",
            "algorithm": "ed25519",
            "signing_key_fingerprint": f"sha256:{hashlib.sha256(public).hexdigest()}",
            "public_key": {"encoding": "pem", "value": "\n".join(pem_lines)},
            "signature": {"encoding": "base64", "value": base64.b64encode(data).decode()},
        }
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['id']}-{vector['flag']}")
def test_vector(vector: dict[str, str]) -> None:
    """Through the room's own door: the bundle that stands in a pack."""
    public, message, data = (bytes.fromhex(vector[name]) for name in ("public", "message", "signature"))
    try:
        parse(bundle(public, data)).check(message)
    except EvpackError:
        assert vector["result"] == "invalid", vector["comment"]
    else:
        assert vector["result"] == "valid", vector["comment"]


def test_the_vectors_hold_every_kind_of_trap() -> None:
    kinds = {"rfc8032", "valid", "wrong_key", "modified_message", "modified_r", "modified_s", "truncated", "extended"}
    kinds |= {"non_canonical_s", "special_s", "special", "r_with_low_order_part", "low_order_key"}
    assert {vector["flag"] for vector in VECTORS} == kinds
    assert sum(vector["message"] == "" for vector in VECTORS) >= 2

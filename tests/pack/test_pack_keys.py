"""Signing keys: made once, readable by their owner only, never shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evpack.errors import BadInput, MissingFile
from evpack.home import Home
from evpack.pack import keys

PKCS8 = serialization.PrivateFormat.PKCS8
PEM = serialization.Encoding.PEM


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def put(path: Path, data: bytes, permissions: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(permissions)
    return path


def test_a_new_pair_is_private_and_its_halves_belong_together(tmp_path: Path) -> None:
    fingerprint = keys.write_keypair(tmp_path / "team")
    private = keys.load_private(tmp_path / "team")
    public = keys.parse_public_pem((tmp_path / "team.pub.pem").read_bytes())
    assert mode(tmp_path / "team") == 0o600
    assert fingerprint == keys.fingerprint(private.public_key()) == keys.fingerprint(public)


def test_the_public_half_of_a_pem_file_drops_the_suffix() -> None:
    assert keys.public_path(Path("k/team.pem")) == Path("k/team.pub.pem")


def test_the_fingerprint_is_the_digest_of_the_raw_key() -> None:
    # public key of test 1 in RFC 8032, section 7.1; digest by sha256sum
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    expected = "sha256:21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
    assert keys.fingerprint(Ed25519PublicKey.from_public_bytes(raw)) == expected


@pytest.mark.parametrize("present", ["team", "team.pub.pem"])
def test_keys_are_never_overwritten(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("something")
    with pytest.raises(BadInput, match="never overwritten"):
        keys.write_keypair(tmp_path / "team")
    assert [path.name for path in tmp_path.iterdir()] == [present]


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, permissions: int) -> None:
    keys.write_keypair(tmp_path / "team")
    (tmp_path / "team").chmod(permissions)
    with pytest.raises(BadInput, match=f"{permissions:04o}"):
        keys.load_private(tmp_path / "team")


def test_a_missing_key_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="keygen"):
        keys.load_private(tmp_path / "none")


def test_a_directory_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a regular file"):
        keys.load_private(tmp_path)


def wrong_keys() -> list[bytes]:
    ed25519 = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - refused, never used
    return [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n",
        ed25519.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, plain),
        ed25519.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret")),
        rsa_key.private_bytes(PEM, PKCS8, plain),
        b"-----BEGIN PRIVATE KEY-----\n" + b"A" * keys.MAX_KEY_BYTES,
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_file_that_is_no_ed25519_pkcs8_key_is_refused_without_showing_it(tmp_path: Path, number: int) -> None:
    data = wrong_keys()[number]
    with pytest.raises(BadInput) as caught:
        keys.load_private(put(tmp_path / "wrong", data))
    lines = [line for line in data.decode("ascii", "replace").splitlines() if len(line) > 8]
    assert not any(line in str(caught.value) for line in lines)


def test_the_deployment_key_is_made_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    first = keys.deployment_key(home)
    content = first.read_bytes()
    assert keys.deployment_key(home) == first and first.read_bytes() == content
    assert mode(home.keys) == 0o700 and mode(first) == 0o600


def test_a_lost_public_half_is_written_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    private = keys.deployment_key(home)
    public = keys.public_path(private)
    before = public.read_bytes()
    public.unlink()
    keys.deployment_key(home)
    assert public.read_bytes() == before

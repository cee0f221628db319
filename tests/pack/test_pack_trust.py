"""Trusted signers come from outside: files, fingerprints, stores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import BadInput, MissingFile
from evpack.pack import attest, keys, trust

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_nothing_given_trusts_nobody(tmp_path: Path) -> None:
    assert trust.collect(environ={"HOME": str(tmp_path)}).fingerprints == frozenset()
    assert trust.collect(environ={}).fingerprints == frozenset()


@pytest.mark.parametrize(
    ("accepted", "signer", "expected"),
    [
        ((), None, "unsigned"),
        ((ONE,), None, "unsigned"),
        ((), ONE, "unpinned"),
        ((ONE, TWO), TWO, "pinned"),
        ((ONE,), TWO, "mismatch"),
    ],
)
def test_how_a_signer_stands_to_the_accepted_ones(accepted: tuple[str, ...], signer: str | None, expected: str) -> None:
    assert trust.Trust(frozenset(accepted)).judge(signer) == expected


def test_a_key_file_holds_a_public_key_or_a_fingerprint(tmp_path: Path) -> None:
    fingerprint = keys.write_keypair(tmp_path / "k")
    named = write(tmp_path / "named", ONE + "\n")
    found = trust.collect(
        trusted_keys=[tmp_path / "k.pub.pem", named], fingerprints=[TWO.upper().replace("SHA", "sha")]
    )
    assert found.fingerprints == {fingerprint, ONE, TWO}


@pytest.mark.parametrize(
    "store",
    [[ONE, TWO], [{"fingerprint": ONE}, TWO], {"trusted_signers": [ONE, TWO]}, {"fingerprints": [ONE, TWO]}],
)
def test_the_forms_of_a_trust_store(tmp_path: Path, store: Any) -> None:
    assert trust.collect(store=write(tmp_path / "store.json", store)).fingerprints == {ONE, TWO}


@pytest.mark.parametrize(
    "store",
    [{}, 7, "text", [1], [{"name": "x"}], ["sha256:12"], "[", '["a", "a"', '{"fingerprints": [], "fingerprints": []}'],
)
def test_a_malformed_trust_store_is_refused(tmp_path: Path, store: Any) -> None:
    with pytest.raises(BadInput):
        trust.collect(store=write(tmp_path / "store.json", store))


def test_the_default_store_counts_when_nothing_else_is_given(tmp_path: Path) -> None:
    write(tmp_path / "evpack" / "trusted_keys.json", [ONE])
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert trust.collect(environ=environ).fingerprints == {ONE}
    assert trust.collect(fingerprints=[TWO], environ=environ).fingerprints == {TWO}


def test_a_private_key_is_not_taken_for_a_trusted_key(tmp_path: Path) -> None:
    keys.write_keypair(tmp_path / "k")
    with pytest.raises(BadInput, match="private key"):
        trust.collect(trusted_keys=[tmp_path / "k"])


def test_a_store_that_names_nobody_is_not_taken_for_no_store(tmp_path: Path) -> None:
    store = write(tmp_path / "store.json", [])
    with pytest.raises(BadInput, match="no signer"):
        trust.collect(store=store)
    assert trust.collect(store=store, fingerprints=[ONE]).fingerprints == {ONE}


def test_several_keys_in_one_file_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        keys.write_keypair(tmp_path / name)
    both = (tmp_path / "a.pub.pem").read_text() + (tmp_path / "b.pub.pem").read_text()
    with pytest.raises(BadInput, match="several keys"):
        trust.collect(trusted_keys=[write(tmp_path / "both", both)])


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for given in ({"trusted_keys": [tmp_path / "pipe"]}, {"store": tmp_path / "pipe"}):
        with pytest.raises(BadInput, match="is no file"):
            trust.collect(**given)  # type: ignore[arg-type]  # a keyword each
    with pytest.raises(BadInput, match="is no file"):
        attest.read(tmp_path / "pipe")


@pytest.mark.parametrize("content", ["", "hello", "sha256:12", "sha256:" + "g" * 64])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(BadInput):
        trust.collect(trusted_keys=[write(tmp_path / "k", content)])


def test_missing_and_oversized_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        trust.collect(trusted_keys=[tmp_path / "none"])
    with pytest.raises(BadInput, match="larger"):
        trust.collect(store=write(tmp_path / "big", " " * (keys.MAX_KEY_BYTES + 1)))
    with pytest.raises(BadInput, match="is no file"):
        trust.collect(store=tmp_path)

"""Packs that earlier versions made stay verifiable: each is kept with its signer's public key and its policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from evpack.catalog.policy import Policy
from evpack.pack import trust
from evpack.pack.verify import Demands, verify_pack

KEPT = sorted((Path(__file__).parent.parent / "packs").glob("v[0-9]*"))


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name)
def test_a_kept_pack_verifies_strictly(kept: Path) -> None:
    policy = Policy.parse((kept / "policy.json").read_bytes(), "policy.json")
    accepted = trust.collect(trusted_keys=[kept / "signer.pub.pem"], environ={})
    result = verify_pack(kept / "pack", accepted, Demands(strict=True, policy=policy))
    assert (result.exit_code, result.verdict) == (0, "PASS"), result.to_json()


def test_a_pack_is_kept() -> None:
    assert KEPT

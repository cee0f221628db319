"""Fixtures: a finished campaign, a signing key, a good pack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pack_campaign import Campaign

from evpack.pack import keys
from evpack.pack.build import BuiltPack, build


@pytest.fixture(scope="session", autouse=True)
def _no_flushing() -> Iterator[None]:
    """No test cuts the power, and flushing hundreds of packs to the device takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A finished campaign with verdict PASS that nobody may change."""
    return Campaign(tmp_path_factory.mktemp("campaign") / "run").write().finish()


@pytest.fixture
def campaign(finished: Campaign, tmp_path: Path) -> Campaign:
    """The same in a directory of its own."""
    shutil.copytree(finished.run.root, tmp_path / "run")
    return Campaign(tmp_path / "run")


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key; its public half stands beside it."""
    path = tmp_path_factory.mktemp("keys") / "team"
    keys.write_keypair(path)
    return path


@pytest.fixture(scope="session")
def good_pack(finished: Campaign, signing_key: Path, tmp_path_factory: pytest.TempPathFactory) -> BuiltPack:
    """A sealed pack with verdict PASS; tests copy it and never write into it."""
    return build(finished.run, key=signing_key, out=tmp_path_factory.mktemp("good") / "pack")

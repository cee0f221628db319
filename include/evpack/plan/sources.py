"""Where the models of a campaign come from: local directories and pinned hub snapshots, read without loading them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.catalog.loader import parse_document, read_document
from evpack.catalog.suites import SuiteModel, locate
from evpack.errors import BadInput, EvidenceError
from evpack.files import digest_json, parse_json, sha256_file
from evpack.home import Home
from evpack.plan.model import ModelSource
from evpack.settings import Settings

GB = 1e9
MAX_HEADER_BYTES = 100 << 20
"""Longest safetensors header that is parsed (the format's own limit)."""

_CONFIG_MEND = "give the directory of a Hugging Face checkpoint in safetensors format"


@dataclass(frozen=True)
class Source:
    """A model before it gets a lane."""

    id: str
    source: ModelSource
    directory: Path
    """The checkpoint: config.json and *.safetensors."""
    weights_gb: float
    largest_tensor_gb: float
    vocab: int
    pin: dict[str, Any]
    """Its entry in model_revisions.json."""


def open_source(model: SuiteModel, settings: Settings, home: Home, now: str, pins: Mapping[str, Any]) -> Source:
    """Find a model's checkpoint, its size and its pin.

    Args:
        now: UTC time of the plan, recorded as the time a local source was pinned.
        pins: the deployment's pinned revisions by model id (`read_pins`).

    Raises:
        BadInput: no such directory, no snapshot of the pinned revision, no checkpoint in it.
    """
    if model.location is not None:
        directory = locate(model.location, home)
        revision = f"sha256:{content_digest(directory)}"
        source = ModelSource(kind="local", path=str(directory.absolute()), revision=revision)
        pin: dict[str, Any] = {"revision": revision, "resolved_at": now, "gated": False, "private": False}
    else:
        pin = _pin_of(model.id, pins)
        directory = hub_snapshot(model.id, pin["revision"], settings, home)
        source = ModelSource(kind="hub", revision=pin["revision"])
    config = parse_document(
        read_document(directory / "config.json", f"model {model.id}:", _CONFIG_MEND), f"{directory}/config.json"
    )
    vocab = config.get("vocab_size") if isinstance(config, dict) else None
    if not isinstance(vocab, int) or vocab < 1:
        raise BadInput(f"model {model.id}: {directory}/config.json names no vocab_size", _CONFIG_MEND)
    shards = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    if not shards:
        raise BadInput(f"model {model.id}: {directory} holds no *.safetensors", _CONFIG_MEND)
    return Source(
        id=model.id,
        source=source,
        directory=directory,
        weights_gb=sum(path.stat().st_size for path in shards) / GB,
        largest_tensor_gb=max(_largest_tensor(path) for path in shards) / GB,
        vocab=vocab,
        pin=pin,
    )


def content_digest(directory: Path) -> str:
    """SHA-256 over names and contents of the files of a checkpoint directory (hidden ones and folders left out)."""
    if not directory.is_dir():
        raise BadInput(f"model path {directory} is not a directory", _CONFIG_MEND)
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    return digest_json({path.name: sha256_file(path) for path in files})


def read_pins(settings: Settings, home: Home) -> Mapping[str, Any]:
    """Pinned revisions by model id, from PACK_MODEL_REVISIONS_FILE or the deployment; empty when it has none.

    Raises:
        BadInput: named file missing, or not of the form ``{models: {id: {revision, ...}}}``.
    """
    path = Path(settings.model_revisions_file) if settings.model_revisions_file else home.model_revisions
    if not settings.model_revisions_file and not path.exists():
        return {}
    mend = "write it as {models: {id: {revision, resolved_at, gated, private}}}"
    document = parse_document(read_document(path, "model revisions file", mend), str(path))
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, dict):
        raise BadInput(f"{path}: holds no object `models`", mend)
    return models


def hub_snapshot(model_id: str, revision: str, settings: Settings, home: Home) -> Path:
    """The snapshot directory of a pinned revision in the hub cache.

    Raises:
        BadInput: when the cache has none.
    """
    cache = hub_cache(settings, home)
    directory = cache / ("models--" + model_id.replace("/", "--")) / "snapshots" / revision
    if not directory.is_dir():
        raise BadInput(
            f"model {model_id}: revision {revision} is not in the cache {cache}",
            "download that revision into it, or set HF_HUB_CACHE to the cache that has it",
        )
    return directory


def hub_cache(settings: Settings, home: Home) -> Path:
    """HF_HUB_CACHE, else hub/ of HF_HOME, else hub/ of the deployment's hf/."""
    if settings.hf_hub_cache:
        return Path(settings.hf_hub_cache)
    return (Path(settings.hf_home) if settings.hf_home else home.hf) / "hub"


def _pin_of(model_id: str, pins: Mapping[str, Any]) -> dict[str, Any]:
    entry = pins.get(model_id)
    pin: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    revision = pin.get("revision")
    if not isinstance(revision, str) or not revision.isalnum():
        raise BadInput(
            f"model {model_id} requires a pinned revision and has none",
            "add it to model_revisions.json in EVPACK_HOME, or set PACK_MODEL_REVISIONS_FILE",
        )
    if pin.get("gated") or pin.get("private"):
        raise BadInput(f"model {model_id} is gated or private", "use an openly available model")
    return {
        "revision": revision,
        "resolved_at": pin.get("resolved_at"),
        "gated": bool(pin.get("gated", False)),
        "private": bool(pin.get("private", False)),
    }


def _largest_tensor(shard: Path) -> int:
    """Bytes of the largest tensor of a shard by its header; the whole file when the header cannot be read.

    A damaged shard is not refused here: the model's own steps fail and name it, the other models go on.
    """
    size = shard.stat().st_size
    try:
        with shard.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = parse_json(handle.read(min(length, MAX_HEADER_BYTES)), shard.name, MAX_HEADER_BYTES)
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return max((int(end) - int(start) for start, end in spans), default=0)
    except (OSError, struct.error, EvidenceError, AttributeError, KeyError, TypeError, ValueError):
        return size

"""Where the models of a campaign come from, read without loading them.

A source is a checkpoint directory, a GGUF file, or the pinned snapshot of a hub repository. Here stands which of its
files belong to a baseline and how large its weights are; bringing it into a run directory is the setup step's work.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evpack.catalog.loader import parse_document, read_document
from evpack.catalog.suites import SuiteModel, locate
from evpack.errors import BadInput, EvidenceError, Transient
from evpack.files import GB, Json, digest_json, parse_json, sha256_file
from evpack.home import Home, safe_name
from evpack.plan import hub
from evpack.plan.model import ModelSource
from evpack.plan.revisions import Pin
from evpack.settings import Settings

MAX_HEADER_BYTES = 100 << 20
"""Longest safetensors header that is parsed (the format's own limit)."""

PLAIN_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken")
"""What a baseline takes besides its weights: configuration and tokenizer."""
CODE_SUFFIX = ".py"
"""Taken as well, for the tokenizer alone, with INVARLOCK_ALLOW_REMOTE_CODE."""

_WEIGHTS: tuple[tuple[Literal["safetensors", "pickle"], str, str], ...] = (
    ("safetensors", "model.safetensors", ".safetensors"),
    ("pickle", "pytorch_model.bin", ".bin"),
)
"""Formats in order of preference: name of the single file (its index has ``.index.json`` behind it), and suffix."""
_PICKLES = "pytorch_model"
"""What the names of pickles begin with that are weights even without an index: each is converted by itself. Safetensors
are read where they are, which takes the single file or an index (`checkpoint.reader`)."""

CONFIG_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "vocab_size": ("vocab_size",),
}
"""Sizes in config.json: our name, then the names families use for it; the first one wins."""

_CONFIG_MEND = "give the directory of a Hugging Face checkpoint in safetensors format"
_BYTES_AFTER_GGUF = 2
"""A converted GGUF file holds bfloat16, whatever it was quantised to."""


@dataclass(frozen=True)
class Weights:
    """The files of a checkpoint that hold its weights, in one format."""

    format: Literal["safetensors", "pickle"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A model before it gets a lane."""

    id: str
    source: ModelSource
    directory: Path
    """The checkpoint: configuration, tokenizer, and its weights when they have arrived."""
    weights_gb: float
    largest_tensor_gb: float
    vocab: int
    pin: dict[str, Any]
    """Its entry in model_revisions.json."""
    arrives: Path | None = None
    """Directory below which its weights still have to be written (download, conversion); None when they are there."""
    blocks: int | None = None
    """Transformer blocks by its configuration; None when it does not say."""
    width: int | None = None
    """Size of its hidden states by its configuration, which every projection has on one side; None as above."""


def open_source(model: SuiteModel, settings: Settings, home: Home, now: str, pins: Mapping[str, Pin]) -> Source:
    """Find a model's checkpoint, its size and its pin. With network, configuration and tokenizer are fetched.

    Args:
        now: UTC time of the plan, recorded as the time a local source was pinned.
        pins: pinned revisions of the hub models by id (`revisions.settle_pins`).

    Raises:
        BadInput: no such directory, no snapshot of the pinned revision, no checkpoint in it, only pickled weights
            without PACK_CONVERT_PICKLE.
    """
    if model.location is None:
        return _open_hub(model.id, pins[model.id], settings, home)
    path = locate(model.location, home).absolute()
    pin: Pin = {"revision": f"sha256:{content_digest(path)}", "resolved_at": now, "gated": False, "private": False}
    if path.is_file():
        return _open_gguf(model.id, path, pin, home)
    sizes, weights = _sizes(path, model.id), weight_files(path, model.id, settings)
    return Source(
        id=model.id,
        source=ModelSource(kind="local", path=str(path), revision=pin["revision"], format=weights.format),
        directory=path,
        weights_gb=sum((path / name).stat().st_size for name in weights.names) / GB,
        largest_tensor_gb=max(_largest_tensor(path / name) for name in weights.names) / GB,
        **sizes,
        pin=pin,
        arrives=None if weights.format == "safetensors" else _missing(converted_dir(home, model.id, pin["revision"])),
    )


def fetch_snapshot(model_id: str, revision: str, settings: Settings, home: Home) -> Path:
    """The snapshot of a pinned revision with everything a baseline takes; downloaded when the network may be used.

    Raises:
        BadInput: the cache or the hub does not have it, or only in a format that is not wanted.
        Transient: the hub cannot be reached.
    """
    directory, sizes = _listing(model_id, revision, settings, home)
    weights = weight_files(directory, model_id, settings, sizes)
    patterns = [*_small_patterns(settings), *weights.names]
    return hub.snapshot(model_id, revision, hub_cache(settings, home), patterns, network=settings.net)


def weight_files(directory: Path, model_id: str, settings: Settings, names: Collection[str] | None = None) -> Weights:
    """Which files hold the weights of a checkpoint: one format, no second copy in another.

    The single file wins over an index, as in transformers; safetensors win over pickles.

    Args:
        directory: the checkpoint; index files are read from it.
        names: names of all its files, where not all have arrived yet; those of the directory when None.

    Raises:
        BadInput: no weights, a damaged index, a file that the index names and that is not there, or only pickles
            without PACK_CONVERT_PICKLE.
    """
    known = {path.name for path in directory.iterdir() if path.is_file()} if names is None else set(names)
    for format_, single, suffix in _WEIGHTS:
        if single in known:
            found = [single]
        elif f"{single}.index.json" in known:
            found = _indexed(directory / f"{single}.index.json", suffix, known)
        elif format_ == "pickle":
            found = sorted(name for name in known if name.endswith(suffix) and name.startswith(_PICKLES))
        else:
            found = []
        if found:
            if format_ == "pickle" and not settings.convert_pickle:
                raise BadInput(
                    f"model {model_id}: {directory} holds no safetensors weights, only pickles ({found[0]})",
                    "use a checkpoint in safetensors format, or let PACK_CONVERT_PICKLE=1 convert these",
                )
            return Weights(format_, tuple(found))
    other = min((name for name in known if name.endswith(".safetensors")), default=None)
    raise BadInput(
        f"model {model_id}: {directory} holds no model.safetensors and no index of shards"
        + (f" that would name {other}" if other else ""),
        _CONFIG_MEND,
    )


def converted_dir(home: Home, model_id: str, revision: str) -> Path:
    """Where the conversion of a source to safetensors is kept for all campaigns of a deployment."""
    return home.models / f"{safe_name(model_id)}-{revision.removeprefix('sha256:')[:16]}"


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or over names and contents of the files of a directory (hidden ones and folders left out)."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise BadInput(f"model path {path} is neither a directory nor a file", _CONFIG_MEND)
    files = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
    return digest_json({item.name: sha256_file(item) for item in files})


def hub_cache(settings: Settings, home: Home) -> Path:
    """HF_HUB_CACHE, else hub/ of HF_HOME, else hub/ of the deployment's hf/."""
    if settings.hf_hub_cache:
        return Path(settings.hf_hub_cache)
    return (Path(settings.hf_home) if settings.hf_home else home.hf) / "hub"


def _open_hub(model_id: str, pin: Pin, settings: Settings, home: Home) -> Source:
    revision, cache = pin["revision"], hub_cache(settings, home)
    try:
        directory, sizes = _listing(model_id, revision, settings, home)
        weights = weight_files(directory, model_id, settings, sizes)
        here = all((directory / name).is_file() for name in weights.names)
        if here or weights.format == "pickle":
            largest = max(_largest_tensor(directory / name) if here else sizes[name] for name in weights.names)
        else:
            largest = hub.largest_tensor(model_id, revision)
    except Transient as error:
        raise BadInput(error.what, error.mend) from error
    arrives = None if here else cache
    if weights.format == "pickle":
        arrives = arrives or _missing(converted_dir(home, model_id, revision))
    return Source(
        id=model_id,
        source=ModelSource(kind="hub", revision=revision, format=weights.format),
        directory=directory,
        weights_gb=sum(sizes[name] for name in weights.names) / GB,
        largest_tensor_gb=largest / GB,
        **_sizes(directory, model_id),
        pin=dict(pin),
        arrives=arrives,
    )


def _listing(model_id: str, revision: str, settings: Settings, home: Home) -> tuple[Path, Mapping[str, int]]:
    """A snapshot with configuration and tokenizer, and the sizes of all files of the repository that matter."""
    cache = hub_cache(settings, home)
    directory = hub.snapshot(model_id, revision, cache, _small_patterns(settings), network=settings.net)
    if settings.net:
        return directory, hub.look_up(model_id, revision).files
    sizes = {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}
    if not any(name.endswith(suffix) for _, _, suffix in _WEIGHTS for name in sizes):
        raise BadInput(f"model {model_id}: revision {revision} is in the cache {cache} without its weights", hub.FETCH)
    return directory, sizes


def plain_suffixes(settings: Settings) -> tuple[str, ...]:
    """Suffixes of the files that a baseline takes besides its weights."""
    return (*PLAIN_SUFFIXES, CODE_SUFFIX) if settings.allow_remote_code else PLAIN_SUFFIXES


def _small_patterns(settings: Settings) -> list[str]:
    return [f"*{suffix}" for suffix in plain_suffixes(settings)]


def _indexed(index: Path, suffix: str, known: Collection[str]) -> list[str]:
    """The files that an index names."""
    document = parse_document(read_document(index, "weight index", _CONFIG_MEND), str(index))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    values = list(weight_map.values()) if isinstance(weight_map, dict) else []
    names = sorted({name for name in values if isinstance(name, str)})
    if not names or not all(isinstance(name, str) and name.endswith(suffix) for name in values):
        raise BadInput(f"{index}: its weight_map does not name files ending in {suffix}", "fetch the checkpoint again")
    if strange := [name for name in names if name != Path(name).name or "\\" in name]:
        raise BadInput(
            f"{index}: it names {strange[0]!r}, which is no plain file name",
            "do not use this checkpoint; fetch it again from a source you trust",
        )
    if missing := [name for name in names if name not in known]:
        raise BadInput(
            f"{index}: the file {missing[0]!r} it names is missing ({len(missing)} of {len(names)})",
            "fetch the missing file",
        )
    return names


def _missing(directory: Path) -> Path | None:
    return None if directory.is_dir() else directory


def _open_gguf(model_id: str, path: Path, pin: Pin, home: Home) -> Source:
    """A GGUF file, by its header. The size is that of its conversion."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        sizes = [int(tensor.n_elements) * _BYTES_AFTER_GGUF for tensor in reader.tensors]
        vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise BadInput(
            f"model {model_id}: {path} is no GGUF file of a language model ({error})", "give an intact GGUF file"
        ) from error
    directory = converted_dir(home, model_id, pin["revision"])
    return Source(
        id=model_id,
        source=ModelSource(kind="local", path=str(path), revision=pin["revision"], format="gguf"),
        directory=directory,
        weights_gb=sum(sizes) / GB,
        largest_tensor_gb=max(sizes, default=0) / GB,
        vocab=vocab,
        pin=pin,
        arrives=_missing(directory),
    )


def config_size(config: Mapping[str, Any], name: str) -> int | None:
    """A size of `CONFIG_KEYS` that a configuration states as a whole number, else None."""
    values = (config.get(key) for key in CONFIG_KEYS[name])
    return next((value for value in values if type(value) is int), None)


def _sizes(directory: Path, model_id: str) -> dict[str, Any]:
    """The fields of a source that come from its configuration."""
    config = parse_document(
        read_document(directory / "config.json", f"model {model_id}:", _CONFIG_MEND), f"{directory}/config.json"
    )
    config = config if isinstance(config, dict) else {}
    vocab = config_size(config, "vocab_size")
    if vocab is None or vocab < 1:
        raise BadInput(f"model {model_id}: {directory}/config.json names no vocab_size", _CONFIG_MEND)
    return {
        "vocab": vocab,
        "blocks": config_size(config, "num_layers"),
        "width": config_size(config, "hidden_size"),
    }


def _largest_tensor(shard: Path) -> int:
    """Bytes of the largest tensor of a shard by its header; the whole file when the header cannot be read.

    A damaged shard is not refused here: the model's own steps fail and name it, the other models go on.
    """
    size = shard.stat().st_size
    try:
        with shard.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header: Json = parse_json(handle.read(min(length, MAX_HEADER_BYTES)), shard.name, MAX_HEADER_BYTES)
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return max((int(end) - int(start) for start, end in spans), default=0)
    except (OSError, struct.error, EvidenceError, AttributeError, KeyError, TypeError, ValueError):
        return size

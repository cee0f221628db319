"""model_profile.json: what setup found out about a baseline, so that nobody has to find it out again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evpack.checkpoint.container import DTYPES
from evpack.checkpoint.contents import TensorRecord
from evpack.checkpoint.documents import read_as
from evpack.checkpoint.reader import Checkpoint, CheckpointLike, contents_of
from evpack.errors import CheckpointError
from evpack.files import Json, write_json
from evpack.plan.sources import CONFIG_KEYS, config_size
from evpack.rundir import ModelDir


class ModelProfile(BaseModel):
    """model_profile.json; the fields of the reference, then the digests."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["evpack_model_profile_v1"] = Field(default="evpack_model_profile_v1", alias="schema")
    model_id: str
    revision: str | None
    weights_bytes: int
    """Size of the safetensors files."""
    weights_gb: float
    """The same in 10^9 bytes, three decimals."""
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    max_position_embeddings: int | None = None
    vocab_size: int | None = None
    dtype_bytes: int
    """Bytes per element of the type that most weights have."""
    checkpoint_digest: str
    """Of `config` and `tensors`, see `Contents.digest`."""
    config: dict[str, Json]
    """The content of config.json."""
    tensors: dict[str, TensorRecord]


def build_profile(checkpoint: Checkpoint, *, model_id: str, revision: str | None) -> ModelProfile:
    """Measure a baseline. Reads every byte once, for the digests.

    Raises:
        CheckpointError: when the checkpoint is damaged.
    """
    contents = contents_of(checkpoint)
    config = checkpoint.config()
    sizes: Counter[int] = Counter()
    for name, record in contents.tensors.items():
        sizes[DTYPES[record.dtype][1]] += checkpoint.info(name).nbytes
    weights_bytes = sum(shard.stat().st_size for shard in checkpoint.shards)
    return ModelProfile(
        model_id=model_id,
        revision=revision,
        weights_bytes=weights_bytes,
        weights_gb=round(weights_bytes / 1e9, 3),
        dtype_bytes=max(sizes, key=lambda size: sizes[size], default=2),
        checkpoint_digest=contents.digest(),
        config=config,
        tensors=dict(contents.tensors),
        **{field: config_size(config, field) for field in CONFIG_KEYS},
    )


def write_profile(path: Path, profile: ModelProfile) -> None:
    """Publish model_profile.json.

    Raises:
        AlreadyPublished: when it exists.
    """
    write_json(path, profile.model_dump(mode="json", by_alias=True), replace=False)


def read_profile(path: Path) -> ModelProfile:
    """Read model_profile.json.

    Raises:
        CheckpointError: when it is absent or malformed.
    """
    return read_as(ModelProfile, path, "run the setup_baseline step of this model again")


def open_baseline(model: ModelDir) -> Checkpoint:
    """The baseline of a model in a run directory, with its recorded digests.

    Raises:
        CheckpointError: when it is damaged, replaced or was not set up.
    """
    profile = read_profile(model.profile)
    checkpoint = Checkpoint(model.baseline, profile.tensors)
    if checkpoint.digest() != profile.checkpoint_digest:
        raise CheckpointError(
            f"{model.baseline}: its config is not the one recorded at setup", "start a new run directory"
        )
    return checkpoint


def main_dtype(checkpoint: CheckpointLike) -> str:
    """Type of the largest tensor, as safetensors names it: the one that most weights have."""
    infos = (checkpoint.info(name) for name in checkpoint.names())
    return max(infos, key=lambda info: info.nbytes).dtype

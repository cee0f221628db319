"""A checkpoint with fewer transformer blocks: the configuration that goes with it, and a view of the first blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpack.checkpoint.container import TensorInfo
from evpack.checkpoint.reader import CheckpointLike, contents_of
from evpack.checkpoint.scope import block_of
from evpack.errors import CheckpointError
from evpack.files import Json

if TYPE_CHECKING:
    import torch

_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def block_count(checkpoint: CheckpointLike) -> int:
    """Blocks that the tensors have, numbered from 0 without a gap.

    Raises:
        CheckpointError: when there is none, a number is missing, or the configuration says another count.
    """
    found = {block for block in map(block_of, checkpoint.names()) if block is not None}
    config = checkpoint.config()
    said = {config[key] for key in _COUNT_KEYS if isinstance(config.get(key), int)}
    if not found or found != set(range(len(found))) or said != {len(found)}:
        raise CheckpointError(
            f"blocks {min(found, default=None)} to {max(found, default=None)} ({len(found)} of them) are stored, "
            f"config.json says {sorted(said)}",
            "leave this scenario out for this model",
        )
    return len(found)


def shortened(config: dict[str, Json], old: int, new: int) -> dict[str, Any]:
    """What in a configuration of `old` blocks must change for the first `new` ones: counts and per-layer lists."""
    counts = {key: new for key in _COUNT_KEYS if config.get(key) == old}
    lists = {
        key: value[:new]
        for key, value in config.items()
        if "layer" in key and isinstance(value, list) and len(value) == old
    }
    return counts | lists


class FirstBlocks:
    """The first blocks of a checkpoint and all that is in no block; see `CheckpointLike`."""

    def __init__(self, checkpoint: CheckpointLike, keep: int) -> None:
        self._checkpoint = checkpoint
        self._keep = keep
        self._config = checkpoint.config() | shortened(checkpoint.config(), block_count(checkpoint), keep)

    def names(self) -> list[str]:
        """See `CheckpointLike.names`."""
        return [name for name in self._checkpoint.names() if (block_of(name) or 0) < self._keep]

    def info(self, name: str) -> TensorInfo:
        """See `CheckpointLike.info`."""
        return self._checkpoint.info(name)

    def read(self, name: str) -> torch.Tensor:
        """See `CheckpointLike.read`."""
        return self._checkpoint.read(name)

    def config(self) -> dict[str, Json]:
        """See `CheckpointLike.config`."""
        return self._config

    def tensor_digest(self, name: str) -> str:
        """See `CheckpointLike.tensor_digest`."""
        return self._checkpoint.tensor_digest(name)

    def digest(self) -> str:
        """See `CheckpointLike.digest`."""
        return contents_of(self).digest()

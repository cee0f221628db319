"""A fault at every block: the fault's own rule, shown a checkpoint whose blocks are numbered from another one on."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.container import TensorInfo
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import block_of
from evpack.faults.blocks import block_count
from evpack.faults.driver import injection_for
from evpack.faults.injection import Injection, Victim

if TYPE_CHECKING:
    import torch

_NUMBER = re.compile(r"((?:^|\.)(?:layers|h|blocks)\.)(\d+)(?=\.)")


class Rotated:
    """A checkpoint whose block `by` is called the first, and so on around. For faults that look at no config.

    Args:
        checkpoint: all of its blocks alike.
        by: 0 to the number of blocks, exclusive.
    """

    def __init__(self, checkpoint: CheckpointLike, by: int) -> None:
        self._checkpoint = checkpoint
        self._blocks = block_count(checkpoint)
        self._by = by

    def original(self, name: str) -> str:
        """The checkpoint's own name of a tensor."""
        return self._moved(name, self._by)

    def names(self) -> list[str]:
        """Names as renumbered, sorted."""
        return sorted(self._moved(name, -self._by) for name in self._checkpoint.names())

    def info(self, name: str) -> TensorInfo:
        """See `CheckpointLike`."""
        return self._checkpoint.info(self.original(name))

    def read(self, name: str) -> torch.Tensor:
        """See `CheckpointLike`."""
        return self._checkpoint.read(self.original(name))

    def config(self) -> dict[str, Any]:
        """The checkpoint's own."""
        return self._checkpoint.config()

    def tensor_digest(self, name: str) -> str:
        """See `CheckpointLike`."""
        return self._checkpoint.tensor_digest(self.original(name))

    def digest(self) -> str:
        """The checkpoint's own."""
        return self._checkpoint.digest()

    def _moved(self, name: str, by: int) -> str:
        return _NUMBER.sub(lambda match: f"{match[1]}{(int(match[2]) + by) % self._blocks}", name, count=1)


def rotated_injection(checkpoint: CheckpointLike, error_type: str, by: int) -> Injection:
    """A fault as it would be made were the block `by` the first one. Only faults that keep all names.

    Raises:
        CheckpointError: when the model has no place for the fault.
    """
    view = Rotated(checkpoint, by)
    injection = injection_for(error_type, Victim(view))
    changes = (replace(change, name=view.original(change.name)) for change in injection.changes)
    return replace(injection, changes=tuple(replace(change, layer=block_of(change.name)) for change in changes))

"""Writing a variant as a stream: one tensor at a time, only those whose bytes changed.

Hashing and writing a tensor happen behind the caller's back while it works on the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from evpack.checkpoint.background import Behind
from evpack.checkpoint.container import ContainerWriter, TensorInfo, info_of, same_bytes, tensor_sha256
from evpack.checkpoint.delta import DELTA_FILE, VARIANT_FILE, ChangedTensor, DeltaCheckpoint, VariantManifest
from evpack.checkpoint.reader import CheckpointLike
from evpack.errors import BrokenContract, CheckpointError
from evpack.files import write_json

if TYPE_CHECKING:
    import torch


class VariantWriter:
    """Write one variant into an existing empty directory.

    Use as a context manager: `put` every tensor that may have changed, then `finish`. Leaving without `finish`
    leaves no variant.json, hence nothing that can be opened.

    Args:
        directory: where delta.safetensors and variant.json go.
        baseline: the checkpoint the variant is made from.
        candidates: names that may be put; the header is sized for them.
        added: the same of tensors that the baseline does not have.
        behind: shared by the writers of one pass, so that they keep one tensor waiting together and not one each.
    """

    def __init__(
        self,
        directory: Path,
        baseline: CheckpointLike,
        candidates: Iterable[str],
        added: Mapping[str, TensorInfo] | None = None,
        behind: Behind | None = None,
    ) -> None:
        self._directory = directory
        self._behind = behind or Behind()
        self._baseline = baseline
        known = {name: baseline.info(name) for name in candidates}
        self._container = ContainerWriter(directory / DELTA_FILE, (known | dict(added or {})).items())
        self._changed: dict[str, ChangedTensor] = {}

    def put(self, name: str, before: torch.Tensor | None, after: torch.Tensor) -> bool:
        """Store a tensor if its bytes changed.

        Args:
            before: what the baseline's `read` gave; None for an added tensor.
            after: its replacement, same type; from now on the writer's.

        Returns:
            Whether the bytes changed.

        Raises:
            DiskFull: naming the tensor that found no room: this one or the one before it.
        """
        if before is not None:
            if before.dtype != after.dtype:
                raise BrokenContract(f"tensor {name!r} would change from {before.dtype} to {after.dtype}")
            if same_bytes(before, after):
                return False
        before_sha256 = None if before is None else self._baseline.tensor_digest(name)
        self._behind.run(lambda: self._store(name, before_sha256, after), info_of(after).nbytes)
        return True

    def _store(self, name: str, before_sha256: str | None, after: torch.Tensor) -> None:
        info = info_of(after)
        hashing = self._behind.beside(lambda: tensor_sha256(after))
        self._container.add(name, after)
        self._changed[name] = ChangedTensor(
            before_sha256=before_sha256, after_sha256=hashing.result(), dtype=info.dtype, shape=info.shape
        )

    def finish(
        self,
        *,
        scenario: str,
        kind: Literal["edit", "error"],
        declaration: Mapping[str, Any] | None,
        metadata: Mapping[str, Any],
        removed: Sequence[str] = (),
        config_overrides: Mapping[str, Any] | None = None,
    ) -> DeltaCheckpoint:
        """Complete the variant and reopen it. A fault is read back whole: that it is there is what the campaign tests.

        The tensors of an edit are held against their digests whenever they are read later.

        Raises:
            CheckpointError: when nothing differs from the baseline, or a fault did not survive.
            DiskFull: when the device has no room.
        """
        self._behind.wait()
        self._container.close()
        if not (self._changed or removed or config_overrides):
            raise CheckpointError(
                f"scenario {scenario!r} changed no byte of the checkpoint",
                "a subject equal to its baseline proves nothing: choose other parameters or another scope",
            )
        manifest = VariantManifest(
            scenario=scenario,
            kind=kind,
            baseline_digest=self._baseline.digest(),
            changed=self._changed,
            removed=tuple(removed),
            config_overrides=dict(config_overrides or {}),
            declaration=None if declaration is None else dict(declaration),
            metadata=dict(metadata),
        )
        write_json(self._directory / VARIANT_FILE, manifest.to_json(), replace=False)
        variant = DeltaCheckpoint(self._baseline, self._directory)
        if kind == "error":
            for name in self._changed:
                variant.read(name)
        return variant

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._behind.settle()
        self._container.__exit__(kind, error, tb)

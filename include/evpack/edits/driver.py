"""Streaming one edit over a checkpoint: read a tensor, edit it, write it, forget it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evpack.catalog.edit_spec import EditType, ResolvedEdit, parse_scope
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import select
from evpack.checkpoint.writer import VariantWriter
from evpack.edits.fp8_quant import Fp8Quant
from evpack.edits.kernel import Kernel
from evpack.edits.lowrank_svd import LowrankSvd
from evpack.edits.magnitude_prune import MagnitudePrune
from evpack.edits.quant_rtn import QuantRtn
from evpack.errors import BadInput, CheckpointError

if TYPE_CHECKING:
    import torch

_KERNELS: dict[EditType, type[Kernel]] = {
    "quant_rtn": QuantRtn,
    "fp8_quant": Fp8Quant,
    "magnitude_prune": MagnitudePrune,
    "lowrank_svd": LowrankSvd,
}

SUPPORTED: tuple[EditType, ...] = tuple(_KERNELS)
"""Edit types that can be made; a plan refuses the others before any compute."""

EDITABLE_DTYPES = ("F32", "F16", "BF16")
"""Types for which arithmetic in fp32 and one cast is exact enough."""

_COMMON: dict[str, Any] = {
    "schema": "invarlock/evidence-pack-edit-metadata-v1",
    "artifact_class": "validation_subject_checkpoint",
    "optimized_deployment_backend": False,
    "packed_quantized_storage": False,
}
"""What the reference's later releases say about every edit: weights are dequantised back, nothing is packed."""


def kernel_for(edit_type: str) -> type[Kernel]:
    """The kernel class of an edit type.

    Raises:
        BadInput: for a type without a kernel, naming those with one.
    """
    for known, kernel in _KERNELS.items():
        if known == edit_type:
            return kernel
    raise BadInput(f"edit type {edit_type!r} cannot be made", f"use one of {', '.join(SUPPORTED)}")


class PreparedEdit:
    """One edit of one checkpoint with everything checked that can be before a tensor is read.

    Args:
        checkpoint: the baseline.
        edit: with status ``selected``.

    Raises:
        BadInput: for an unsupported edit, a layer the model does not have, or parameters that do not fit a tensor.
        CheckpointError: when the scope matches nothing, or a tensor is of a type that cannot be edited.
    """

    def __init__(self, checkpoint: CheckpointLike, edit: ResolvedEdit) -> None:
        if edit.status != "selected":
            raise BadInput(f"edit {edit.spec!r} is {edit.status}: {edit.reason}", "skip the scenario")
        self.edit = edit
        self._kernel = kernel_for(edit.edit_type)(edit)
        self._places = {place.name: place for place in select(checkpoint, parse_scope(edit.scope))}
        for name in self._places:
            info = checkpoint.info(name)
            _check_dtype(name, info.dtype)
            self._kernel.check(name, *info.shape[-2:])

    @property
    def names(self) -> list[str]:
        """The tensors of the edit, by layer, then by name: the order in which they are written."""
        return list(self._places)

    def apply(self, name: str, before: torch.Tensor) -> torch.Tensor:
        """The edited tensor: a matrix as one, a fused tensor expert by expert. Each name once.

        Args:
            before: what `read_finite` gave; not changed.

        Raises:
            CheckpointError: when the edit makes entries non-finite.
        """
        after = self._edited(before, self._places[name].inputs_first)
        if not bool(after.isfinite().all()):
            raise CheckpointError(
                f"edit {self.edit.spec!r} makes {int((~after.isfinite()).sum())} entries of tensor {name!r} non-finite",
                "choose milder parameters or a checkpoint in a type with a wider range",
            )
        return after

    def _edited(self, tensor: torch.Tensor, inputs_first: bool) -> torch.Tensor:
        if tensor.dim() == 3:
            import torch

            experts = torch.empty_like(tensor)
            for expert, edited in zip(tensor, experts, strict=True):
                edited.copy_(self._edited(expert, inputs_first))
            return experts
        return self._kernel.apply(tensor.T.contiguous()).T.contiguous() if inputs_first else self._kernel.apply(tensor)

    def finish(self, writer: VariantWriter, scenario: str) -> DeltaCheckpoint:
        """Complete the variant after all tensors have been put.

        Raises:
            CheckpointError: when no byte changed.
        """
        return writer.finish(
            scenario=scenario,
            kind="edit",
            declaration={"tensors": self.names, "edit_type": self.edit.edit_type, **self._kernel.declaration()},
            metadata={**_COMMON, "spec": self.edit.spec, **self._kernel.metadata(len(self._places))},
        )


def apply_edit(checkpoint: CheckpointLike, edit: ResolvedEdit, directory: Path, *, scenario: str) -> DeltaCheckpoint:
    """Make the variant of an edit.

    Args:
        checkpoint: the baseline.
        edit: with status ``selected``.
        directory: existing and empty; gets delta.safetensors and variant.json.
        scenario: recorded in the variant.

    Returns:
        The variant, reopened, with every changed tensor read back.

    Raises:
        BadInput: see `PreparedEdit`.
        CheckpointError: see `PreparedEdit`; also when a tensor is non-finite, the edit produces non-finite values or
            changes nothing at all.
    """
    prepared = PreparedEdit(checkpoint, edit)
    with VariantWriter(directory, checkpoint, prepared.names) as writer:
        for name in prepared.names:
            before = read_finite(checkpoint, name)
            writer.put(name, before, prepared.apply(name, before))
        return prepared.finish(writer, scenario)


def read_finite(checkpoint: CheckpointLike, name: str) -> torch.Tensor:
    """Read a tensor that arithmetic can be trusted on.

    Raises:
        CheckpointError: when it holds NaN or infinities.
    """
    tensor = checkpoint.read(name)
    finite = tensor.isfinite()
    if not bool(finite.all()):
        raise CheckpointError(
            f"baseline tensor {name!r} holds {int((~finite).sum())} non-finite values", "use an undamaged baseline"
        )
    return tensor


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in EDITABLE_DTYPES:
        raise CheckpointError(
            f"tensor {name!r} has element type {dtype}, which edits cannot handle",
            f"use a checkpoint in {', '.join(EDITABLE_DTYPES)}",
        )

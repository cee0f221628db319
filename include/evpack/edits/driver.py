"""Streaming one edit over a checkpoint: read a tensor, edit it, write it, forget it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evpack.catalog.edit_spec import EditType, ResolvedEdit, parse_scope
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import select
from evpack.checkpoint.writer import VariantWriter
from evpack.edits.kernel import Kernel
from evpack.edits.magnitude_prune import MagnitudePrune
from evpack.edits.quant_rtn import QuantRtn
from evpack.errors import BadInput, CheckpointError

if TYPE_CHECKING:
    import torch

_KERNELS: dict[EditType, type[Kernel]] = {"quant_rtn": QuantRtn, "magnitude_prune": MagnitudePrune}

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
        BadInput: for an unsupported edit or a layer the model does not have.
        CheckpointError: when the scope matches nothing, a tensor is non-finite or of a type that cannot be edited,
            the edit produces non-finite values or changes nothing at all.
    """
    if edit.status != "selected":
        raise BadInput(f"edit {edit.spec!r} is {edit.status}: {edit.reason}", "skip the scenario")
    kernel = kernel_for(edit.edit_type)(edit)
    names = select(checkpoint, parse_scope(edit.scope))
    with VariantWriter(directory, checkpoint, names) as writer:
        for name in names:
            before = _editable(checkpoint, name)
            after = _edited(kernel, before)
            if not bool(after.isfinite().all()):
                count = int((~after.isfinite()).sum())
                raise CheckpointError(
                    f"edit {edit.spec!r} makes {count} entries of tensor {name!r} non-finite",
                    "choose milder parameters or a checkpoint in a type with a wider range",
                )
            writer.put(name, before, after)
        return writer.finish(
            scenario=scenario,
            kind="edit",
            declaration={"tensors": names, "edit_type": edit.edit_type, **kernel.declaration()},
            metadata={**_COMMON, "spec": edit.spec, **kernel.metadata(len(names))},
        )


def _editable(checkpoint: CheckpointLike, name: str) -> torch.Tensor:
    """Read a tensor that arithmetic can be trusted on."""
    dtype = checkpoint.info(name).dtype
    if dtype not in EDITABLE_DTYPES:
        raise CheckpointError(
            f"tensor {name!r} has element type {dtype}, which edits cannot handle",
            f"use a checkpoint in {', '.join(EDITABLE_DTYPES)}",
        )
    tensor = checkpoint.read(name)
    finite = tensor.isfinite()
    if not bool(finite.all()):
        raise CheckpointError(
            f"baseline tensor {name!r} holds {int((~finite).sum())} non-finite values", "use an undamaged baseline"
        )
    return tensor


def _edited(kernel: Kernel, tensor: torch.Tensor) -> torch.Tensor:
    """Apply a kernel to a matrix, or to each expert's matrix of a fused tensor."""
    if tensor.dim() == 2:
        return kernel.apply(tensor)
    import torch

    result = torch.empty_like(tensor)
    for index in range(tensor.shape[0]):
        result[index] = kernel.apply(tensor[index])
    return result

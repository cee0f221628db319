"""Streaming edits over a checkpoint: read a tensor, edit it in every way that is wanted, write, forget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evpack.catalog.edit_spec import EditType, ResolvedEdit, parse_scope
from evpack.checkpoint.background import Behind, read_ahead
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import placements, select, unknown_matrices
from evpack.checkpoint.writer import VariantWriter
from evpack.edits.fp8_quant import Fp8Quant
from evpack.edits.kernel import Kernel, one_thread
from evpack.edits.lowrank_svd import LowrankSvd
from evpack.edits.magnitude_prune import MagnitudePrune
from evpack.edits.quant_rtn import QuantRtn
from evpack.errors import BadInput, CheckpointError, EvpackError

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

_NAMED = 8
"""Matrices outside every scope that a variant names; of the others it has the count."""

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
        scope = parse_scope(edit.scope)
        self.places = {place.name: place for place in select(checkpoint, scope)}
        """Tensors of the edit, by layer, then by name: the order in which they are written."""
        self._unknown = unknown_matrices(checkpoint, scope)
        for name in self.places:
            info = checkpoint.info(name)
            _check_dtype(name, info.dtype)
            self._kernel.check(name, *info.shape[-2:])

    @property
    def names(self) -> list[str]:
        """The names of `places`."""
        return list(self.places)

    def declaration(self) -> dict[str, Any]:
        """What the variant will declare, from the edit's parameters and the selected names only."""
        return {"tensors": self.names, "edit_type": self.edit.edit_type, **self._kernel.declaration()}

    def apply(self, name: str, before: torch.Tensor) -> torch.Tensor:
        """The edited tensor: a matrix as one, a fused tensor expert by expert. Each name once.

        Args:
            before: as the checkpoint's `read` gave it, on any device, finite; not changed.

        Raises:
            CheckpointError: when the edit makes entries non-finite, or a decomposition does not converge.
        """
        import torch

        try:
            after = self._edited(before, self.places[name].inputs_first)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # documented, but not in its stub
            raise CheckpointError(
                f"edit {self.edit.spec!r} cannot be computed of tensor {name!r}: {str(error).splitlines()[0]}",
                "use another scope, or another edit",
            ) from error
        if not is_finite(after):
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
            declaration=self.declaration(),
            metadata={**_COMMON, "spec": self.edit.spec, **self._kernel.metadata(len(self.places)), **self._left_out()},
        )

    def _left_out(self) -> dict[str, Any]:
        """What the edit leaves out of the blocks it is about, because its family is known in part only."""
        if not self._unknown:
            return {}
        return {"unknown_matrices": {"count": len(self._unknown), "first": self._unknown[:_NAMED]}}


def apply_edit(
    checkpoint: CheckpointLike, edit: ResolvedEdit, directory: Path, *, scenario: str, device: str = "cpu"
) -> DeltaCheckpoint:
    """Make the variant of one edit; see `apply_edits`.

    Args:
        directory: existing and empty; gets delta.safetensors and variant.json.
        scenario: recorded in the variant.
        device: see there.

    Returns:
        The variant, reopened.
    """
    made = apply_edits(checkpoint, {scenario: (edit, directory)}, device)[scenario]
    if isinstance(made, EvpackError):
        raise made
    return made


def apply_edits(
    checkpoint: CheckpointLike, edits: Mapping[str, tuple[ResolvedEdit, Path]], device: str = "cpu"
) -> dict[str, DeltaCheckpoint | EvpackError]:
    """Make the variants of several edits in one pass that reads each tensor once.

    Args:
        checkpoint: the baseline.
        edits: by scenario: the edit, with status ``selected``, and an existing empty directory for its variant.
        device: torch device that computes. Every step of `quant_rtn`, `fp8_quant` and `magnitude_prune` is rounded
            as IEEE 754 says, so that all devices give the same bytes; `lowrank_svd` sums in an order of the device's.

    Returns:
        By scenario: the variant, or why it cannot be made: `BadInput` as `PreparedEdit` raises it, or a
        `CheckpointError` when a tensor is non-finite, the edit makes it so, or nothing at all changes. The others
        go on; what was written for that one cannot be opened.

    Raises:
        CheckpointError: when a tensor cannot be read.
        DiskFull: naming a tensor.
    """
    made: dict[str, DeltaCheckpoint | EvpackError] = {}
    at_work: dict[str, tuple[PreparedEdit, VariantWriter]] = {}
    behind = Behind()
    with ExitStack() as stack:
        for scenario, (edit, directory) in edits.items():
            with _noted(made, scenario):
                prepared = PreparedEdit(checkpoint, edit)
                writer = VariantWriter(directory, checkpoint, prepared.names, behind=behind)
                at_work[scenario] = prepared, stack.enter_context(writer)
        for name, before in read_ahead(checkpoint, _union(checkpoint, at_work)):
            there = before.to(device)
            fault = _non_finite(name, there)
            for scenario, (prepared, writer) in at_work.items():
                if scenario in made or name not in prepared.places:
                    continue
                with _noted(made, scenario):
                    if fault is not None:
                        raise fault
                    writer.put(name, before, prepared.apply(name, there).cpu())
            del before, there  # before the next one is read
        for scenario, (prepared, writer) in at_work.items():
            if scenario not in made:
                with _noted(made, scenario):
                    made[scenario] = prepared.finish(writer, scenario)
    return made


@contextmanager
def _noted(made: dict[str, DeltaCheckpoint | EvpackError], scenario: str) -> Iterator[None]:
    """Note the fault of one edit, so that it ends that edit only."""
    try:
        yield
    except (BadInput, CheckpointError) as error:
        made[scenario] = error


def _union(checkpoint: CheckpointLike, edits: Mapping[str, tuple[PreparedEdit, VariantWriter]]) -> list[str]:
    """Tensors of any of the edits, in the order in which each edit by itself takes them."""
    wanted = set().union(*(prepared.places for prepared, _ in edits.values()))
    return [place.name for place in placements(checkpoint) if place.name in wanted]


@one_thread()
def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; mostly one pass, no temporary of the tensor's size."""
    if bool(tensor.sum().isfinite()):  # twice as fast as what follows; finite entries may have a sum that is not
        return True
    lowest, highest = tensor.aminmax()  # NaN if one entry is
    return bool(lowest.isfinite() & highest.isfinite())


def _non_finite(name: str, tensor: torch.Tensor) -> CheckpointError | None:
    """The fault of a baseline tensor that arithmetic cannot be trusted on."""
    if is_finite(tensor):
        return None
    return CheckpointError(
        f"baseline tensor {name!r} holds {int((~tensor.isfinite()).sum())} non-finite values",
        "use an undamaged baseline",
    )


def _check_dtype(name: str, dtype: str) -> None:
    if dtype not in EDITABLE_DTYPES:
        raise CheckpointError(
            f"tensor {name!r} has element type {dtype}, which edits cannot handle",
            f"use a checkpoint in {', '.join(EDITABLE_DTYPES)}",
        )

"""Symmetric round-to-nearest quantisation, per row and group of columns, stored dequantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evpack.checkpoint.memory import empty_like
from evpack.edits.kernel import SMALLEST_SCALE, Kernel, one_thread, row_blocks
from evpack.errors import BadInput

if TYPE_CHECKING:
    import torch

    from evpack.catalog.edit_spec import ResolvedEdit


class QuantRtn(Kernel):
    """``w' = s * clamp(round(w / s), -2^(b-1), 2^(b-1) - 1)`` with ``s = max|w| / (2^(b-1) - 1)`` of each group.

    Rounding is half to even. The last group of a row may be shorter and is scaled by its own entries.
    """

    def __init__(self, edit: ResolvedEdit) -> None:
        if edit.bits is None or edit.group_size is None:
            raise BadInput(f"edit {edit.spec!r} has no bits or group size", "plan the campaign again")
        self.bits = edit.bits
        self.group_size = edit.group_size
        self.scope = edit.scope

    @one_thread()
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """See `Kernel.apply`."""
        import torch

        result = empty_like(weight)
        columns = weight.shape[1]
        group = self.group_size if 0 < self.group_size < columns else max(1, columns)
        whole = columns - columns % group
        for rows in row_blocks(weight):
            block = weight[rows].to(torch.float32, copy=True)
            self._round(block[:, :whole].view(len(block), whole // group, group))
            if whole < columns:
                self._round(block[:, whole:].unsqueeze(1))
            result[rows] = block
        return result

    def _round(self, groups: torch.Tensor) -> None:
        """The same of some rows, in place.

        Args:
            groups: fp32 [rows, groups, entries of a group].
        """
        import torch

        highest = max(2 ** (self.bits - 1) - 1, 1)
        scale = torch.maximum(groups.amax(dim=2, keepdim=True), groups.amin(dim=2, keepdim=True).neg_())
        scale = scale.div_(scale.new_tensor(highest)).clamp_min_(SMALLEST_SCALE)
        groups.div_(scale).round_().mul_(scale)  # |w / s| <= highest * (1 + 2^-23): rounding needs no clamp

    def declaration(self) -> dict[str, Any]:
        """See `Kernel.declaration`."""
        return {"grid": {"bits": self.bits, "group_size": self.group_size}}

    def metadata(self, tensors: int) -> dict[str, Any]:
        """See `Kernel.metadata`."""
        return {
            "edit_type": "quant_rtn",
            "bits": self.bits,
            "group_size": self.group_size,
            "scope": self.scope,
            "quantized_params": tensors,
        }

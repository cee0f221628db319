"""Casting to an 8-bit float and back, with or without a scale, stored dequantised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evpack.edits.kernel import SMALLEST_SCALE, Kernel, largest_magnitude, one_thread, row_blocks
from evpack.errors import BadInput

if TYPE_CHECKING:
    import torch

    from evpack.catalog.edit_spec import ResolvedEdit

_TINY = 1e-10
"""The reference's guard of the relative error's denominator."""


@dataclass(frozen=True)
class Float8:
    """An 8-bit float type."""

    torch_name: str
    mantissa_bits: int
    smallest_exponent: int
    """Exponent of the smallest normal number."""
    largest: float
    saturates: bool
    """Whether overflow gives the largest number instead of infinity, as it does in torch."""


E4M3 = Float8("float8_e4m3fn", mantissa_bits=3, smallest_exponent=-6, largest=448.0, saturates=True)
E5M2 = Float8("float8_e5m2", mantissa_bits=2, smallest_exponent=-14, largest=57344.0, saturates=False)


def float8_of(format_name: str) -> Float8:
    """The type behind a format's name; as in the reference, every e4m3 variant means e4m3fn, all others e5m2."""
    return E4M3 if format_name.startswith("e4m3") else E5M2


class Fp8Quant(Kernel):
    """``w' = s * fp8(w / s)``: s = 1 (scale none), or max|w| of the tensor or of each row over the largest number."""

    def __init__(self, edit: ResolvedEdit) -> None:
        if edit.format is None:
            raise BadInput(f"edit {edit.spec!r} has no format", "plan the campaign again")
        self.format = edit.format
        self.float8 = float8_of(edit.format)
        self.scale = edit.scale
        self.scope = edit.scope
        self._relative_errors: list[float] = []

    @one_thread()
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """See `Kernel.apply`. Unscaled e5m2 gives infinities from 61,440 on, e4m3fn stops at 448."""
        import torch

        result = torch.empty_like(weight)
        largest = largest_magnitude(weight) if self.scale == "tensor" else None
        error = magnitude = 0.0
        for rows in row_blocks(weight):
            block = weight[rows].to(torch.float32, copy=True)
            result[rows] = self._rounded(block, largest)
            error += float((result[rows].float() - block).abs_().sum())
            magnitude += float(block.abs_().sum())
        count = max(1, weight.numel())
        self._relative_errors.append((error / count) / (magnitude / count + _TINY))
        return result

    def _rounded(self, block: torch.Tensor, largest: torch.Tensor | None) -> torch.Tensor:
        """The same of some rows in fp32.

        Args:
            largest: max|w| of the whole matrix for scale tensor.
        """
        if self.scale == "none":
            return round_to_float8(block, self.float8)
        if largest is None:
            largest = block.abs().amax(dim=1, keepdim=True)
        scale = (largest / self.float8.largest).clamp_min(SMALLEST_SCALE)
        return round_to_float8(block / scale, self.float8).mul_(scale)

    def declaration(self) -> dict[str, Any]:
        """See `Kernel.declaration`."""
        return {"grid": {"float8": self.float8.torch_name, "scale": self.scale}}

    def metadata(self, tensors: int) -> dict[str, Any]:
        """See `Kernel.metadata`. `avg_relative_error`: mean over matrices of mean|w' - w| / mean|w|."""
        return {
            "edit_type": "fp8_quant",
            "format": self.format,
            "float8": self.float8.torch_name,
            "scale": self.scale,
            "scope": self.scope,
            "quantized_tensors": tensors,
            "avg_relative_error": math.fsum(self._relative_errors) / max(1, len(self._relative_errors)),
        }


def round_to_float8(values: torch.Tensor, float8: Float8) -> torch.Tensor:
    """Round to the nearest number of an 8-bit type, ties to even: by torch's own type where it has one.

    Args:
        values: fp32, any shape.

    Returns:
        New tensor of the same shape, fp32.
    """
    import torch

    dtype = getattr(torch, float8.torch_name, None)
    return emulate_float8(values, float8) if dtype is None else _decoded(values.to(dtype), float8)


def _decoded(codes: torch.Tensor, float8: Float8) -> torch.Tensor:
    """8-bit floats as fp32. Through fp16, which has the same layout with more bits: torch's own cast is not vectorised.

    e5m2 is the upper half of an fp16. e4m3fn has one exponent bit less and another bias, hence the shift by 7 (the
    sign, which comes out twice, is cleared in the exponent) and the factor of 2^8; its NaN has no place there.
    """
    import torch

    bits = codes.view(torch.int8).to(torch.int16)
    if float8 is E5M2:
        return (bits << 8).view(torch.float16).float()
    if bool(((bits & 0x7F) == 0x7F).any()):
        return codes.float()
    return ((bits << 7) & ~0x4000).view(torch.float16).float().mul_(256.0)


def emulate_float8(values: torch.Tensor, float8: Float8) -> torch.Tensor:
    """`round_to_float8` by arithmetic alone, equal to torch's cast on every input.

    Numbers of one binary exponent e lie 2^(e - mantissa bits) apart, below the smallest normal exponent as far apart
    as there. Dividing and multiplying by that power of two is exact in fp32, so `round` does all the rounding.
    """
    import torch

    _, exponent = torch.frexp(values)  # |values| in [2^(exponent - 1), 2^exponent)
    spacing = torch.ldexp(
        torch.ones_like(values), (exponent - 1).clamp(min=float8.smallest_exponent) - float8.mantissa_bits
    )
    rounded = (values / spacing).round_().mul_(spacing)
    overflow = float8.largest if float8.saturates else math.inf
    large = rounded.abs() > float8.largest  # false for NaN, which stays
    return torch.where(large, torch.copysign(torch.full_like(values, overflow), values), rounded)

"""Casting to an 8-bit float and back, with or without a scale, stored dequantised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.memory import empty_like
from evpack.edits.kernel import SMALLEST_SCALE, Kernel, largest_magnitude, one_thread, row_blocks
from evpack.errors import BadInput

if TYPE_CHECKING:
    import torch

    from evpack.catalog.edit_spec import ResolvedEdit

_TINY = 1e-10
"""The reference's guard of the relative error's denominator."""

_FP32_MANTISSA_BITS, _FP32_BIAS, _FP32_EXPONENT = 23, 127, 0x7F80_0000
"""Layout of fp32: bits of the mantissa, bias of the exponent, the exponent's bits."""

_ABOVE_ALL = 2.0**64
"""No 8-bit type goes so far: from there on it does not matter how a number is rounded."""


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

        result = empty_like(weight)
        largest = largest_magnitude(weight) if self.scale == "tensor" else None
        error = magnitude = 0.0
        for rows in row_blocks(weight):
            block = weight[rows].to(torch.float32, copy=True)
            rounded = self._rounded(block, largest)
            result[rows] = rounded
            if self.scale != "none":  # without a scale, every type holds the numbers of an 8-bit type
                rounded = result[rows].float()
            error += float((rounded - block).abs_().sum())
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
        scale = (largest / largest.new_tensor(self.float8.largest)).clamp_min(SMALLEST_SCALE)
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
    """Round to the nearest number of an 8-bit type, ties to even: equal to torch's cast on every input.

    By arithmetic, in the same way on every device; torch's own cast is not vectorised on the CPU. Of a sum with
    1.5 * 2^23 times the distance of a type's numbers around a value, fp32 holds just what is a multiple of that
    distance; subtracting the same again is exact. Numbers of one binary exponent e lie 2^(e - mantissa bits) apart,
    those below the smallest normal number as far apart as there.

    Args:
        values: fp32, any shape.

    Returns:
        New tensor of the same shape, fp32.
    """
    import torch

    power = (values.view(torch.int32) & _FP32_EXPONENT).view(torch.float32)  # 2^e
    power.clamp_(2.0**float8.smallest_exponent, _ABOVE_ALL)
    shift = 1.5 * 2.0 ** (_FP32_MANTISSA_BITS - float8.mantissa_bits)
    rounded = torch.add(values, power, alpha=shift).sub_(power, alpha=shift)
    if float8.saturates:
        rounded.clamp_(-float8.largest, float8.largest)
    else:
        beyond = 2.0 ** (_FP32_BIAS - math.floor(math.log2(float8.largest)))
        rounded.mul_(beyond).mul_(1 / beyond)  # what is larger becomes infinite, all else stays
    return torch.copysign(rounded, values, out=rounded)  # zeros keep their sign

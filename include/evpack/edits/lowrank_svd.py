"""Truncated singular value decomposition: each matrix becomes its best approximation of a given rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evpack.edits.kernel import Kernel, full_precision, largest_magnitude, row_blocks
from evpack.errors import BadInput

if TYPE_CHECKING:
    import torch

    from evpack.catalog.edit_spec import ResolvedEdit

EXACT_DIMENSION = 512
"""Up to this smaller dimension the eigenvectors are computed exactly: a fraction of a second per matrix."""
OVERSAMPLING = 16
"""Columns of the random sketch beyond the rank."""
POWER_ITERATIONS = 4
SEED = 20_250_601
"""Of the sketch, the same for every matrix: an edit depends on nothing but its matrix."""


class LowrankSvd(Kernel):
    """``W' = Q Q^T W``, Q the leading `rank` left singular vectors (right ones for a tall matrix)."""

    def __init__(self, edit: ResolvedEdit) -> None:
        if edit.rank is None:
            raise BadInput(f"edit {edit.spec!r} has no rank", "plan the campaign again")
        self.rank = edit.rank
        self.scope = edit.scope
        self._energies: list[float] = []

    def check(self, name: str, rows: int, columns: int) -> None:
        """See `Kernel.check`: the rank of the smaller dimension would call a matrix edited that is only rounded."""
        if self.rank >= min(rows, columns):
            raise BadInput(
                f"lowrank_svd: rank {self.rank} leaves tensor {name!r} ({rows} x {columns}) as it is",
                f"give a rank below {min(rows, columns)}, or a scope without this tensor",
            )

    @full_precision()
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """See `Kernel.apply`."""
        import torch

        values = weight.to(torch.float32, copy=True)
        scale = torch.ldexp(values.new_ones(()), torch.frexp(largest_magnitude(values)).exponent)
        values /= scale  # a power of two: exact, and squares of huge weights stay finite
        wide = values if values.shape[0] <= values.shape[1] else values.T
        basis = leading_basis(wide, self.rank)
        coordinates = basis.T @ wide
        left, right = (basis, coordinates) if wide is values else (coordinates.T, basis.T)
        result = torch.empty_like(weight)
        for rows in row_blocks(weight):
            result[rows] = (left[rows] @ right).mul_(scale)
        total, kept = _energy(values), _energy(coordinates)
        self._energies.append(min(1.0, kept / total) if total > 0.0 else 1.0)
        return result

    def declaration(self) -> dict[str, Any]:
        """See `Kernel.declaration`."""
        return {"rank": self.rank}

    def metadata(self, tensors: int) -> dict[str, Any]:
        """See `Kernel.metadata`. Energy is the squared Frobenius norm, averaged over matrices."""
        return {
            "edit_type": "lowrank_svd",
            "rank": self.rank,
            "scope": self.scope,
            "modified_matrices": tensors,
            "avg_energy_retained": math.fsum(self._energies) / max(1, len(self._energies)),
            "seed": SEED,
        }


def _energy(matrix: torch.Tensor) -> float:
    """Sum of the squares; by rows, because torch's norm of 10^7 fp32 entries at once is off by half a percent."""
    import torch

    return float(torch.linalg.vector_norm(matrix, dim=1).double().square().sum())


def leading_basis(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Orthonormal basis of the leading left singular vectors.

    Exact (eigenvectors of the Gram matrix in fp64) when the matrix is small or the rank a large part of it, else by
    a seeded sketch, refined by power iterations (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1).

    Args:
        matrix: fp32, rows x columns with rows <= columns.
        rank: at most rows.

    Returns:
        fp32, rows x rank; columns by falling singular value.
    """
    import torch

    sketch = rank + OVERSAMPLING
    if matrix.shape[0] <= max(EXACT_DIMENSION, 2 * sketch):
        return _leading_eigenvectors(matrix, rank).float()
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(matrix.shape[1], sketch, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    within = _leading_eigenvectors(basis.T @ matrix, rank).float()
    return torch.matmul(basis, within)


def _leading_eigenvectors(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors of ``matrix matrix^T`` to its largest eigenvalues, fp64, rows x rank."""
    import torch

    exact = matrix.double()
    vectors: torch.Tensor = torch.linalg.eigh(exact @ exact.T).eigenvectors
    return vectors.flip(1)[:, :rank]

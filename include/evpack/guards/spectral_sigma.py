"""The largest singular value of a matrix, converged, in fp64. Shared by weights and activations.

A few power iterations from a fixed start miss a matrix whose top direction is orthogonal to that start and stop
early where the first values lie close together, so every comparison of two models would compare two errors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CONTRACT = {"type": "gram_or_lanczos", "precision": "float64", "init": "gaussian", "seed": 0, "tolerance": 1e-5}
"""How a value was found, as reports name it. The tolerance bounds the residual relative to the squared value."""

_DENSE, _VERY_TALL = 192, 16
"""Up to this many rows or columns, and where one side is this many times the other, all eigenvalues of the Gram matrix
cost less than the steps of Lanczos."""
_SQUARES = (1e-200, 1e200)
"""Matrices whose squares add up to a number between these are multiplied with themselves within the range of fp64."""
_FIRST_CHECK, _MOST_STEPS = 16, 320


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    """A floating tensor in fp64; 8-bit floats go through fp32, to which they convert exactly."""
    return (tensor.float() if tensor.element_size() == 1 else tensor).double()


def squared_sum(matrix: torch.Tensor) -> float:
    """The sum of a floating matrix's squared elements; not finite when one of them is not."""
    flat = matrix.reshape(-1)
    return float(flat @ flat)


def top_singular_value(matrix: torch.Tensor) -> float:
    """The largest singular value of a matrix of any floating type, NaN when an element is not finite.

    The relative error is below 1e-5: eigenvalues of the Gram matrix where it is small, else Lanczos steps on the
    product with its transpose, fully reorthogonalised, until the residual bounds the error (Golub and Van Loan,
    Matrix Computations, section 10.1); where they do not converge, the Gram matrix after all.

    Args:
        matrix: rows x columns.
    """
    matrix, scale = as_double(matrix), 1.0
    if not _SQUARES[0] < squared_sum(matrix) < _SQUARES[1]:
        scale = max(-float(matrix.min()), float(matrix.max())) if matrix.numel() else 0.0
        if not math.isfinite(scale):
            return math.nan
        if scale == 0.0:
            return 0.0
        matrix = matrix / scale
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if tall.shape[1] <= _DENSE or tall.shape[0] >= _VERY_TALL * tall.shape[1]:
        return scale * _by_gram(tall)
    found = _by_lanczos(tall)
    return scale * (_by_gram(tall) if found is None else found)


def _by_gram(tall: torch.Tensor) -> float:
    import torch

    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(tall.T @ tall)[-1])))


def _by_lanczos(tall: torch.Tensor) -> float | None:
    """None when the steps did not converge."""
    import torch

    size = tall.shape[1]
    draw = torch.Generator().manual_seed(int(CONTRACT["seed"]))  # type: ignore[call-overload]
    vector = torch.randn(size, generator=draw, dtype=torch.float64).to(tall.device)
    basis = torch.empty(min(_MOST_STEPS, size) + 1, size, dtype=torch.float64, device=tall.device)
    basis[0] = vector / vector.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(len(basis) - 1):
        image = tall.T @ (tall @ basis[step])
        diagonal.append(float(image @ basis[step]))
        known = basis[: step + 1]
        for _ in range(2):  # twice is enough to keep the basis orthogonal to working precision
            image = image - known.T @ (known @ image)
        rest = float(image.norm())
        if rest == 0.0 or (step + 1 >= _FIRST_CHECK and (step + 1) % 4 == 0):
            value, last = _top_of(diagonal, beside)
            if rest * abs(last) <= float(CONTRACT["tolerance"]) * value:  # type: ignore[arg-type]
                return math.sqrt(max(0.0, value))
        if rest == 0.0:
            return None
        beside.append(rest)
        basis[step + 1] = image / rest
    return None


def _top_of(diagonal: list[float], beside: list[float]) -> tuple[float, float]:
    """Largest eigenvalue of a symmetric tridiagonal matrix, and the last entry of its eigenvector."""
    import torch

    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
        matrix = matrix + off + off.T
    values, vectors = torch.linalg.eigh(matrix)
    return float(values[-1]), float(vectors[-1, -1])

"""The largest singular value against LAPACK's full decomposition, on random and real matrices."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

import pytest
import torch  # noqa: TID253

from evpack.checkpoint.reader import Checkpoint
from evpack.guards.spectral_sigma import top_singular_value

ROOM = 1e-3
FIXTURE = Path(str(resources.files("evpack.assets") / "fixture" / "model"))


def exact(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.double())[0])


def spectrum(values: torch.Tensor, rows: int, columns: int, seed: int) -> torch.Tensor:
    """A matrix with given singular values between random orthogonal bases."""
    draw = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=draw, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=draw, dtype=torch.float64))[0]
    return left @ torch.diag(values.double()) @ right.T


@pytest.mark.parametrize("seed", range(120))
def test_random_matrices_of_many_shapes(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows, columns = (int(n) for n in torch.randint(1, 260, (2,), generator=draw))
    matrix = torch.randn(rows, columns, generator=draw) * 10.0 ** (seed % 7 - 3)
    assert top_singular_value(matrix) == pytest.approx(exact(matrix), rel=ROOM)


@pytest.mark.parametrize("gap", [0.5, 0.1, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("shape", [(400, 220), (220, 400), (300, 300)])
def test_close_and_repeated_top_values(gap: float, shape: tuple[int, int]) -> None:
    values = torch.linspace(1.0 - gap, 0.1, 200)
    matrix = spectrum(torch.cat([torch.tensor([1.0]), values]), *shape, seed=3)
    assert top_singular_value(matrix) == pytest.approx(1.0, rel=ROOM)


@pytest.mark.parametrize("size", [64, 320])
def test_a_top_direction_orthogonal_to_ones(size: int) -> None:
    """Where power iterations from a constant vector see only the rest."""
    direction = torch.ones(size, dtype=torch.float64)
    direction[::2] = -1.0
    direction /= direction.norm()
    rest = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.01
    rest -= rest @ torch.outer(direction, direction)
    matrix = rest + 5.0 * torch.outer(direction, direction)
    assert top_singular_value(matrix) == pytest.approx(exact(matrix), rel=ROOM)


def real_matrices() -> list[str]:
    checkpoint = Checkpoint(FIXTURE)
    return [name for name in checkpoint.names() if len(checkpoint.info(name).shape) == 2]


def test_every_matrix_of_a_trained_model_and_its_parts() -> None:
    checkpoint, count = Checkpoint(FIXTURE), 0
    for name in real_matrices():
        tensor = checkpoint.read(name)
        for matrix in (tensor, tensor[: tensor.shape[0] // 2], tensor[:, 1::3]):
            assert top_singular_value(matrix) == pytest.approx(exact(matrix), rel=ROOM), name
            count += 1
    assert count >= 80


def test_values_without_a_norm() -> None:
    assert math.isnan(top_singular_value(torch.tensor([[1.0, math.nan]])))
    assert math.isnan(top_singular_value(torch.tensor([[1.0, math.inf]])))
    assert top_singular_value(torch.zeros(3, 300)) == 0.0
    assert top_singular_value(torch.ones(250, 250)) == pytest.approx(250.0)


def test_extreme_scales_neither_overflow_nor_vanish() -> None:
    for scale in (1e-300, 1e300):
        matrix = torch.full((4, 9), scale, dtype=torch.float64)
        assert top_singular_value(matrix) == pytest.approx(6.0 * scale)


def test_half_and_eight_bit_floats() -> None:
    matrix = torch.eye(5) * 2.0
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn):
        assert top_singular_value(matrix.to(dtype)) == pytest.approx(2.0)


def test_equal_inputs_give_equal_bits() -> None:
    matrix = torch.randn(500, 300, generator=torch.Generator().manual_seed(9))
    assert top_singular_value(matrix) == top_singular_value(matrix.clone())

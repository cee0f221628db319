import pytest
import torch  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.edits import kernel_for, lowrank_svd
from evpack.errors import BadInput


def kernel(rank):
    return kernel_for("lowrank_svd")(resolve_edit(parse_edit_spec(f"lowrank_svd:{rank}:all")))


def normal(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def with_spectrum(values, columns, seed=0):
    """A matrix with these singular values."""
    rows = len(values)
    left = torch.linalg.qr(normal(rows, rows, seed).double()).Q
    right = torch.linalg.qr(normal(columns, rows, seed + 1).double()).Q
    return ((left * values) @ right.T).float()


def excess(weight, result, rank):
    """Error of a reconstruction over the smallest possible one (Eckart and Young), minus one."""
    tail = torch.linalg.svdvals(weight.double())[rank:].square().sum().sqrt()
    return float((weight.double() - result.double()).norm() / tail) - 1


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10_000), st.data())
def test_small_matrices_get_the_best_approximation_of_exactly_that_rank(rows, columns, seed, data):
    rank = data.draw(st.integers(1, min(rows, columns) - 1))
    weight = normal(rows, columns, seed)
    subject = kernel(rank)
    result = subject.apply(weight)
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-5) == rank
    assert excess(weight, result, rank) == pytest.approx(0, abs=1e-5)
    squares = torch.linalg.svdvals(weight.double()).square()
    energy = float(squares[:rank].sum() / squares.sum())
    assert subject.metadata(1)["avg_energy_retained"] == pytest.approx(energy, rel=1e-5)


@settings(max_examples=8)
@given(
    st.sampled_from(["flat", "harmonic", "steep", "cliff"]),
    st.sampled_from([4, 16, 48]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_a_sketch_comes_within_one_percent_of_the_best(shape, rank, tall, seed):
    rows, columns = 560, 700
    assert rows > max(lowrank_svd.EXACT_DIMENSION, 2 * (rank + lowrank_svd.OVERSAMPLING)), "the sketch is used"
    index = torch.arange(1, rows + 1).double()
    spectrum = {"harmonic": 1 / index, "steep": torch.exp(-index / 20), "cliff": torch.where(index <= rank, 10.0, 1.0)}
    weight = normal(rows, columns, seed) if shape == "flat" else with_spectrum(spectrum[shape], columns, seed)
    weight = weight.T.contiguous() if tall else weight
    result = kernel(rank).apply(weight)
    assert 0 <= excess(weight, result, rank) + 1e-5 < 0.01
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-5) == rank


def test_the_same_matrix_gives_the_same_bytes_whatever_came_before():
    weight = normal(560, 600)
    subject = kernel(8)
    torch.manual_seed(1)
    one = subject.apply(weight)
    torch.manual_seed(2)
    subject.apply(normal(560, 600, 9))
    assert torch.equal(subject.apply(weight), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_is_fp32_with_one_cast(dtype):
    weight = normal(24, 40).to(dtype)
    copy = weight.clone()
    result = kernel(6).apply(weight)
    assert result.dtype == dtype
    assert torch.equal(result, kernel(6).apply(weight.float()).to(dtype))
    assert torch.equal(weight, copy)


def test_zeros_stay_zeros():
    subject = kernel(2)
    assert not subject.apply(torch.zeros(4, 6)).any()
    assert subject.metadata(1)["avg_energy_retained"] == 1.0


def test_the_full_rank_keeps_the_matrix():
    weight = normal(5, 9).bfloat16()
    assert torch.equal(kernel(5).apply(weight), weight)


@pytest.mark.parametrize("rank", [5, 6])
def test_a_rank_that_keeps_the_matrix_is_no_edit_and_named_with_the_tensor(rank):
    kernel(4).check("w", 5, 9)
    with pytest.raises(BadInput, match=rf"rank {rank} leaves tensor 'w' \(9 x 5\) as it is.*rank below 5"):
        kernel(rank).check("w", 9, 5)


def test_metadata_and_declaration():
    subject = kernel(1)
    subject.apply(torch.diag(torch.tensor([3.0, 1.0])))
    subject.apply(torch.diag(torch.tensor([1.0, 1.0])))
    metadata = subject.metadata(2)
    assert metadata["avg_energy_retained"] == pytest.approx((0.9 + 0.5) / 2)
    assert (metadata["rank"], metadata["modified_matrices"], metadata["seed"]) == (1, 2, lowrank_svd.SEED)
    assert subject.declaration() == {"rank": 1}


def test_energy_of_a_large_matrix_is_exact_to_a_millionth() -> None:
    matrix = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(0))
    assert lowrank_svd._energy(matrix) == pytest.approx(float(matrix.double().square().sum()), rel=1e-6)

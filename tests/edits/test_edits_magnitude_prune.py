import pytest
import torch  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.edits import kernel as kernel_module
from evpack.edits import kernel_for

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def kernel(sparsity):
    return kernel_for("magnitude_prune")(resolve_edit(parse_edit_spec(f"magnitude_prune:{sparsity}:all")))


def by_sorting(weight, count):
    """The definition: a stable sort by magnitude, the first `count` become zero."""
    flat = weight.flatten().clone()
    order = flat.double().abs().sort(stable=True).indices
    flat[order[:count]] = 0
    return flat.reshape(weight.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 30),
    seed=st.integers(0, 10_000),
    sparsity=st.floats(0.001, 1.0),
    levels=st.sampled_from([None, 2, 5]),
)
def test_equals_a_stable_sort(dtype, rows, columns, seed, sparsity, levels):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight = (weight if levels is None else (weight * levels).round() / levels).to(dtype)
    result = kernel(sparsity).apply(weight)
    assert torch.equal(result, by_sorting(weight, int(weight.numel() * sparsity)))
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_smaller_than_the_matrix_give_the_same(monkeypatch, dtype):
    weight = (torch.randn(40, 25, generator=torch.Generator().manual_seed(5)) * 4).round().to(dtype)
    whole = kernel(0.37).apply(weight)
    monkeypatch.setattr(kernel_module, "BLOCK_ELEMENTS", 64)
    assert torch.equal(kernel(0.37).apply(weight), whole)


def test_tiny_and_huge_magnitudes_order_right():
    weight = torch.tensor([[1e-45, 3e38, -1e-38, 2e-38, -3.4e38, 1.0]])
    assert kernel(0.5).apply(weight).tolist() == by_sorting(weight, 3).tolist()


def test_the_argument_is_not_changed():
    weight = torch.randn(4, 4)
    copy = weight.clone()
    kernel(0.5).apply(weight)
    assert torch.equal(weight, copy)


def test_metadata_sums_over_all_tensors_and_counts_old_zeros():
    subject = kernel(0.5)
    subject.apply(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    subject.apply(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    metadata = subject.metadata(2)
    assert metadata["target_sparsity"] == 0.5
    assert metadata["actual_sparsity"] == 5 / 8
    assert metadata["pruned_params"] == 2
    assert subject.declaration() == {"sparsity": 0.5}

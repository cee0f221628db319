import pytest
import torch  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.edit_spec import MAX_BITS, parse_edit_spec, resolve_edit
from evpack.checkpoint.container import same_bytes
from evpack.edits import kernel as kernel_module
from evpack.edits import kernel_for


def kernel(bits, group=0):
    return kernel_for("quant_rtn")(resolve_edit(parse_edit_spec(f"quant_rtn:{bits}:{group}:all")))


def matrices(dtype):
    return st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 10_000)).map(
        lambda size: torch.randn(size[:2], generator=torch.Generator().manual_seed(size[2])).to(dtype)
    )


def test_zeros_stay_zeros():
    assert not kernel(4).apply(torch.zeros(3, 5)).any()


def test_arithmetic_is_fp32_with_one_cast():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = kernel(8, 32).apply(weight.float())
    assert torch.equal(kernel(8, 32).apply(weight), exact.bfloat16())
    groups = weight.reshape(64, 3, 32)
    scale = groups.abs().amax(2, keepdim=True) / 127
    in_bf16 = ((groups / scale).round() * scale).reshape(64, 96)
    assert (exact - weight.float()).norm() < (in_bf16.float() - weight.float()).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_type_and_shape_stay_and_the_argument_is_not_changed(dtype):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    copy = weight.clone()
    result = kernel(4, 3).apply(weight)
    assert result.dtype == dtype and result.shape == weight.shape
    assert torch.equal(weight, copy)


@given(matrices(torch.float32), st.integers(2, 8), st.sampled_from([0, 1, 3, 8, 32]))
def test_error_is_at_most_half_a_step_and_levels_are_few(weight, bits, group):
    result = kernel(bits, group).apply(weight)
    width = group if 0 < group < weight.shape[1] else weight.shape[1]
    for start in range(0, weight.shape[1], width):
        part, rounded = weight[:, start : start + width], result[:, start : start + width]
        step = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert bool(((part - rounded).abs() <= step * 0.5 * (1 + 1e-5)).all())
        assert all(row.unique().numel() <= 2**bits for row in rounded)


@given(
    matrices(torch.float32), st.integers(1, MAX_BITS), st.integers(0, 41), st.sampled_from([1e-38, 1e-12, 1.0, 7e37])
)
def test_equals_the_formula_whatever_the_size_of_group_and_weights(weight, bits, group, factor):
    weight = weight.clamp(-4, 4) * factor
    width = group if 0 < group < weight.shape[1] else weight.shape[1]
    lowest, highest = -(2 ** (bits - 1)), max(2 ** (bits - 1) - 1, 1)
    expected = []
    for part in weight.split(width, dim=1):
        scale = (part.abs().amax(1, keepdim=True) / highest).clamp_min(1e-10)
        expected.append((part / scale).round().clamp(lowest, highest) * scale)
    assert same_bytes(kernel(bits, group).apply(weight), torch.cat(expected, dim=1))


@given(matrices(torch.bfloat16), st.integers(1, 8), st.sampled_from([0, 4, 32]))
def test_a_second_pass_changes_no_byte_in_bf16(weight, bits, group):
    once = kernel(bits, group).apply(weight)
    assert torch.equal(kernel(bits, group).apply(once), once)


@given(matrices(torch.float32), st.integers(2, 8))
def test_a_second_pass_moves_nothing_by_more_than_rounding_in_fp32(weight, bits):
    once = kernel(bits).apply(weight)
    assert torch.allclose(kernel(bits).apply(once), once, rtol=1e-6, atol=0)


@given(matrices(torch.float32), st.sampled_from([0, 5]))
def test_rows_are_independent_of_how_they_are_blocked(weight, group):
    whole = kernel(4, group).apply(weight)
    rows = [kernel(4, group).apply(weight[i : i + 1]) for i in range(weight.shape[0])]
    assert torch.equal(torch.cat(rows), whole)


def test_blocks_smaller_than_the_matrix_give_the_same(monkeypatch):
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    whole = kernel(4, 5).apply(weight)
    monkeypatch.setattr(kernel_module, "BLOCK_ELEMENTS", 48)
    assert torch.equal(kernel(4, 5).apply(weight), whole)


def test_metadata_and_declaration():
    subject = kernel(4, 32)
    assert subject.declaration() == {"grid": {"bits": 4, "group_size": 32}}
    assert subject.metadata(7) == {
        "edit_type": "quant_rtn",
        "bits": 4,
        "group_size": 32,
        "scope": "all",
        "quantized_params": 7,
    }

import pytest
import torch  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.edit_spec import FP8_FORMATS, parse_edit_spec, resolve_edit
from evpack.edits import kernel as kernel_module
from evpack.edits import kernel_for
from evpack.edits.fp8_quant import E4M3, E5M2, float8_of, round_to_float8

FLOAT8 = [E4M3, E5M2]
SCALES = ["none", "tensor", "channel"]


def kernel(name, scale="none"):
    spec = parse_edit_spec("fp8_quant:clean:all")
    return kernel_for("fp8_quant")(resolve_edit(spec, {"status": "selected", "format": name, "scale": scale}))


def normal(rows, columns, seed, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 10_000))


def bits(tensor):
    """Bit patterns, one for all NaNs."""
    return torch.where(tensor.isnan(), 0x7FC0_0000, tensor.view(torch.int32))


@pytest.mark.parametrize("float8", FLOAT8, ids=lambda f: f.torch_name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_equals_torch_on_all_16_bit_inputs(float8, dtype):
    inputs = torch.arange(1 << 16).to(torch.int16).view(dtype)
    native = inputs.to(getattr(torch, float8.torch_name)).float()
    assert torch.equal(bits(round_to_float8(inputs.float(), float8)), bits(native))


@pytest.mark.parametrize("float8", FLOAT8, ids=lambda f: f.torch_name)
def test_rounding_equals_torch_on_random_patterns_of_32_bits(float8):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32).view(torch.float32)
    native = inputs.to(getattr(torch, float8.torch_name)).float()
    assert torch.equal(bits(round_to_float8(inputs, float8)), bits(native))


@pytest.mark.parametrize("float8", FLOAT8, ids=lambda f: f.torch_name)
def test_the_table_is_that_of_torch(float8):
    facts = torch.finfo(getattr(torch, float8.torch_name))
    assert float8.largest == facts.max
    assert 2.0**float8.smallest_exponent == facts.smallest_normal
    assert 2.0**-float8.mantissa_bits == facts.eps


def test_overflow_is_that_of_torch():
    assert round_to_float8(torch.tensor([61439.0, 61440.0, -1e30]), E5M2).tolist() == [57344.0, torch.inf, -torch.inf]
    assert round_to_float8(torch.tensor([464.0, 1e30, -torch.inf]), E4M3).tolist() == [448.0, 448.0, -448.0]


def test_every_format_name_means_one_of_two_types():
    assert {name: float8_of(name) for name in FP8_FORMATS} == {
        name: E4M3 if name.startswith("e4m3") else E5M2 for name in FP8_FORMATS
    }


@given(sizes, st.sampled_from(["e4m3", "e5m2"]), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_a_second_pass_changes_no_byte(size, name, dtype):
    once = kernel(name).apply(normal(*size, dtype))
    assert torch.equal(kernel(name).apply(once), once)


@given(sizes, st.sampled_from(["e4m3", "e5m2"]), st.sampled_from(SCALES), st.floats(1e-6, 1e4))
def test_the_error_is_at_most_half_a_step(size, name, scale, factor):
    weight = normal(*size) * factor
    float8 = float8_of(name)
    if scale == "none":
        weight = weight.clamp(-float8.largest, float8.largest)
    units = {"none": torch.ones(1), "tensor": weight.abs().max(), "channel": weight.abs().amax(1, keepdim=True)}[scale]
    units = units / float8.largest if scale != "none" else units
    error = (kernel(name, scale).apply(weight) - weight).abs()
    half_ulp = weight.abs() * 2.0 ** -(float8.mantissa_bits + 1)
    half_subnormal = units * 2.0 ** (float8.smallest_exponent - float8.mantissa_bits - 1)
    assert bool((error <= torch.maximum(half_ulp, half_subnormal) * (1 + 1e-5)).all())


@pytest.mark.parametrize("scale", SCALES)
def test_blocks_smaller_than_the_matrix_give_the_same(monkeypatch, scale):
    weight = normal(50, 16, 1)
    whole = kernel("e4m3", scale).apply(weight)
    monkeypatch.setattr(kernel_module, "BLOCK_ELEMENTS", 48)
    assert torch.equal(kernel("e4m3", scale).apply(weight), whole)


def test_a_row_has_its_own_scale_only_by_channel():
    weight = normal(4, 32, 3)
    louder = weight * torch.tensor([1.0, 1024.0, 1.0, 1.0]).reshape(4, 1)
    for scale, independent in {"channel": True, "tensor": False}.items():
        one, other = (kernel("e4m3", scale).apply(w) for w in (weight, louder))
        assert torch.equal(one[0], other[0]) is independent
        assert (kernel("e4m3", "channel").apply(louder)[1] == 1024 * kernel("e4m3", "channel").apply(weight)[1]).all()


def test_a_scale_makes_room_for_what_would_overflow():
    weight = torch.tensor([[1e6, 3.0]])
    assert kernel("e5m2").apply(weight).isinf().any()
    assert kernel("e5m2", "tensor").apply(weight)[0, 0] == pytest.approx(1e6)


def test_the_argument_is_not_changed():
    weight = normal(4, 4, 0)
    copy = weight.clone()
    for scale in SCALES:
        kernel("e4m3", scale).apply(weight)
    assert torch.equal(weight, copy)


def test_metadata_averages_over_matrices():
    subject = kernel("e5m2", "channel")
    assert subject.metadata(0)["avg_relative_error"] == 0.0
    first = normal(4, 4, 0)
    errors = [float((kernel("e5m2", "channel").apply(w) - w).abs().mean() / w.abs().mean()) for w in (first, first**3)]
    subject.apply(first)
    subject.apply(first**3)
    assert subject.metadata(2)["avg_relative_error"] == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert subject.declaration() == {"grid": {"float8": "float8_e5m2", "scale": "channel"}}

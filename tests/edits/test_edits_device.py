"""Edits on an accelerator, pretended: every operation of a kernel must be on the device, and the bytes the same."""

import pytest
import torch  # noqa: TID253
from pretended_device import NAME, Far, PretendedDevice

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.edits import apply_edit, apply_edits, kernel, kernel_for
from evpack.errors import CheckpointError

SPECS = {
    "rtn": "quant_rtn:4:8:all",
    "rtn_odd": "quant_rtn:3:5:all",
    "fp8": "fp8_quant:e4m3:all",
    "fp8_wide": "fp8_quant:e5m2:all",
    "prune": "magnitude_prune:0.4:all",
    "svd": "lowrank_svd:2:all",
}


def edits(root):
    for name in SPECS:
        (root / name).mkdir(parents=True)
    return {name: (resolve_edit(parse_edit_spec(spec)), root / name) for name, spec in SPECS.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_variants_are_the_same_bytes(tmp_path, block, checkpoint_of, dtype):
    checkpoint = checkpoint_of({name: tensor.to(dtype) for name, tensor in block.items()})
    here = apply_edits(checkpoint, edits(tmp_path / "here"))
    with PretendedDevice() as device:
        there = apply_edits(checkpoint, edits(tmp_path / "there"), NAME)
    assert device.seen >= {"round_", "copysign", "kthvalue", "linalg_eigh"}
    for name in SPECS:
        assert (there[name].path / "delta.safetensors").read_bytes() == (
            here[name].path / "delta.safetensors"
        ).read_bytes(), name


@pytest.mark.parametrize("spec", SPECS.values())
def test_every_kernel_gets_tensors_of_the_device_and_gives_some(tmp_path, block, checkpoint_of, monkeypatch, spec):
    edit = resolve_edit(parse_edit_spec(spec))
    kind, got = kernel_for(edit.edit_type), []
    real = kind.apply

    def apply(self, weight):
        result = real(self, weight)
        got.append((type(weight), type(result)))
        return result

    monkeypatch.setattr(kind, "apply", apply)
    fused = {f"model.layers.0.mlp.experts.{name}": torch.randn(3, 6, 10) for name in ("gate_up_proj", "down_proj")}
    checkpoint = checkpoint_of(block | fused)
    with PretendedDevice():
        variant = apply_edit(checkpoint, edit, tmp_path, scenario="s", device=NAME)
    assert set(got) == {(Far, Far)}
    assert len(got) >= len(variant.variant.declaration["tensors"])


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_scaled_fp8_gives_the_same(scale):
    tuned = {"status": "selected", "format": "e4m3", "scale": scale, "scope": "all"}
    edit = resolve_edit(parse_edit_spec("fp8_quant:clean:all"), tuned)
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    with PretendedDevice():
        there = kernel_for("fp8_quant")(edit).apply(weight.to(NAME)).cpu()
    assert torch.equal(there, kernel_for("fp8_quant")(edit).apply(weight))


def test_a_sketched_decomposition_runs_on_the_device(monkeypatch):
    monkeypatch.setattr("evpack.edits.lowrank_svd.EXACT_DIMENSION", 8)
    edit = resolve_edit(parse_edit_spec("lowrank_svd:4:all"))
    weight = torch.randn(80, 90, generator=torch.Generator().manual_seed(1))
    with PretendedDevice():
        there = kernel_for("lowrank_svd")(edit).apply(weight.to(NAME)).cpu()
    assert torch.equal(there, kernel_for("lowrank_svd")(edit).apply(weight))


def test_a_damaged_baseline_is_seen_on_the_device_too(tmp_path, block, checkpoint_of):
    name = "model.layers.1.mlp.down_proj.weight"
    block[name][0, 3] = float("inf")
    with PretendedDevice(), pytest.raises(CheckpointError, match=f"'{name}' holds 1 non-finite"):
        apply_edit(
            checkpoint_of(block), resolve_edit(parse_edit_spec("quant_rtn:8:ffn")), tmp_path, scenario="s", device=NAME
        )


def test_blocks_are_large_on_a_device(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK_ELEMENTS", 4)
    with PretendedDevice():
        assert len(list(kernel.row_blocks(torch.zeros(8, 4).to(NAME)))) == 1
    assert len(list(kernel.row_blocks(torch.zeros(8, 4)))) == 8


def test_products_are_not_shortened_and_the_process_keeps_its_choice():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for allowed in (True, False):
            matmul.allow_tf32 = allowed
            with kernel.full_precision():
                assert matmul.fp32_precision == "ieee"
            assert matmul.allow_tf32 is allowed
        for precision in ("tf32", "ieee"):  # by torch's newer name, after which the older one cannot always be read
            matmul.allow_tf32 = precision == "ieee"
            matmul.fp32_precision = precision
            with kernel.full_precision():
                assert matmul.fp32_precision == "ieee"
            assert matmul.fp32_precision == precision
    finally:
        matmul.allow_tf32 = before

"""The no-op of calibration: noise that means nothing, its shift, and the band that follows from it."""

from __future__ import annotations

import math

import pytest

from evpack.catalog.policy import resolve_policy
from evpack.errors import EvidenceError
from evpack.evaluation.assess import assess
from evpack.evaluation.half_ulp import add_half_ulp
from evpack.evaluation.noop import noop_digest, noop_shift

SMALL = resolve_policy("balanced", "small")


def test_every_weight_moves_by_half_a_unit_in_the_last_place_of_bf16() -> None:
    import torch

    model = torch.nn.Linear(64, 64)
    with torch.no_grad():
        model.weight[0, 0] = 0.0
        model.weight[0, 1] = 1.0
    before = model.weight.detach().clone()
    add_half_ulp(model)
    moved = (model.weight.detach() - before).double().abs()
    ulp = torch.exp2(torch.floor(torch.log2(before.double().abs())) - 7)
    assert torch.allclose(moved[before != 0], ulp[before != 0] / 2, rtol=1e-3)
    assert float(moved[0, 0]) == 0.0 and float(moved[0, 1]) == 2.0**-8
    assert 0.4 < float((model.weight > before).double().mean()) < 0.6


def test_in_a_bf16_model_half_of_the_weights_move_by_a_unit_and_the_noise_is_seeded() -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).to(torch.bfloat16)
    before = model.weight.detach().clone()
    add_half_ulp(model)
    once = model.weight.detach().clone()
    assert 0.4 < float((once != before).double().mean()) < 0.6
    with torch.no_grad():
        model.weight.copy_(before)
    add_half_ulp(model)
    assert torch.equal(model.weight, once)


def test_shift_is_the_paired_mean_and_needs_every_window(records) -> None:
    baseline = records([3.0, 3.1, 3.2, 3.3], side="baseline")
    assert noop_shift(records([3.001, 3.1, 3.201, 3.3]), baseline) == pytest.approx(0.0005)
    for broken in (records([3.0, None, 3.2, 3.3]), records([3.0, 3.1, 3.2, 3.3], run=2)):
        with pytest.raises(EvidenceError, match="redo calibrate"):
            noop_shift(broken, baseline)


def test_a_sensitive_model_has_a_wider_band(records) -> None:
    losses = [3.0 + 0.01 * i for i in range(64)]
    pair = records([loss + 0.01 for loss in losses]), records(losses, side="baseline")
    detected = {
        shift: assess(*pair, SMALL, noop_shift=shift).primary_metric["detected_shift"]
        for shift in (0.0, 0.005, -0.02, 0.02)
    }
    assert detected == {0.0: True, 0.005: True, -0.02: False, 0.02: False}
    metric = assess(*pair, SMALL, noop_shift=-0.02).primary_metric
    assert (metric["noop_shift"], metric["shift_band"]) == (-0.02, 0.02)
    assert assess(*pair, SMALL, noop_shift=1e-5).primary_metric["shift_band"] == 0.002
    assert "shift_band" not in assess(*pair, SMALL).primary_metric


def test_the_digest_names_the_baseline() -> None:
    assert noop_digest("a") != noop_digest("b") and math.isfinite(int(noop_digest("a"), 16))

from __future__ import annotations

import pytest

from evpack.catalog.edit_spec import EditType
from evpack.catalog.policy import resolve_policy
from evpack.guards.spectral_records import Collapse, MatrixRecord, SpectralRecords
from evpack.presets.guard_sections import edit_variant, family_caps, guard_sections

POLICY = resolve_policy("balanced", "small")


def matrices(*sigmas: float) -> SpectralRecords:
    whole = Collapse(eligible=4, collapsed=0)
    records = {
        f"model.layers.{i}.mlp.down_proj.weight": MatrixRecord(
            dtype="F32", shape=(4, 4), tensor_sha256="0" * 64, sigma=sigma, frobenius=9.0, rows=whole, columns=whole
        )
        for i, sigma in enumerate(sigmas)
    }
    return SpectralRecords(side="baseline", checkpoint_digest="d", contract={}, matrices=records)


def test_a_guard_outside_the_order_has_no_section() -> None:
    assert guard_sections(("invariants",), POLICY, None) == {}
    assert set(guard_sections(("rmt", "spectral"), POLICY, matrices(1, 2))) == {"rmt", "spectral"}
    assert set(guard_sections(("spectral", "variance"), POLICY, None)) == {"variance"}


@pytest.mark.parametrize("tier", ["balanced", "conservative", "aggressive"])
def test_thresholds_are_the_policys(tier: str) -> None:
    policy = resolve_policy(tier, "small")
    sections = guard_sections(("spectral", "rmt", "variance"), policy, matrices(1, 2, 3))
    assert sections["spectral"]["max_caps"] == policy.number("spectral.max_caps")
    (cap,) = sections["spectral"]["family_caps"].values()
    assert cap["policy_kappa"] == policy.number("spectral.family_caps.ffn.kappa") < cap["kappa"]
    assert sections["rmt"]["epsilon"] == policy.number("rmt.epsilon")
    assert sections["variance"]["monitor_only"] is True


def test_caps_on_z_never_tighten_and_follow_an_outlier() -> None:
    floor = POLICY.number("spectral.family_caps.ffn.kappa")
    assert family_caps(matrices(1, 2, 3), POLICY) == {"ffn": round(floor + 0.05, 3)}
    few = resolve_policy("balanced", "small").model_copy(
        update={
            "thresholds": POLICY.thresholds
            | {"spectral.max_caps": POLICY.thresholds["spectral.max_caps"].model_copy(update={"value": 1})}
        }
    )
    assert family_caps(matrices(*[1.0, 1.1] * 40, 50.0), few)["ffn"] > floor + 0.05
    assert family_caps(matrices(2, 2, 2), POLICY) == {}


@pytest.mark.parametrize("edit_type", ["quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"])
def test_a_variant_names_its_type_and_holds_the_limits_in_force(edit_type: EditType) -> None:
    sections = guard_sections(("spectral", "rmt"), POLICY, matrices(1, 2))
    preset = {"_calibration_meta": {"model_name": "m"}, "guards": {"order": ["spectral", "rmt"]} | sections}
    variant = edit_variant(preset, edit_type)
    assert variant["_calibration_meta"] == {"model_name": "m", "edit_type": edit_type}
    assert variant["guards"]["spectral"] == sections["spectral"], "no budget of caps is widened"
    wide = edit_type == "lowrank_svd"
    for key in ("epsilon", "epsilon_rms"):
        assert variant["guards"]["rmt"][key] == POLICY.number("rmt.epsilon_lower_rank" if wide else f"rmt.{key}")
    assert "edit_type" not in preset["_calibration_meta"], "the preset itself stays as it was"
    assert edit_variant({"_calibration_meta": {}, "guards": {"order": []}}, edit_type)["guards"] == {"order": []}

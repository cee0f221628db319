from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import EvidenceError
from evpack.presets.derive import Drift, derive, read_preset


def report(run: int, drift: float, **changes: Any) -> dict[str, Any]:
    return {
        "meta": {"model_name": "m", "run": run, "tier": "balanced"},
        "primary_metric": {"drift": drift},
        "dataset": {"provider": "text", "seq_len": 8, "stride": 8, "windows": {"preview": 4, "final": 5}},
        "compute": {"batch": 8},
        "checkpoint_digest": "d",
    } | changes


def test_band_is_the_prediction_interval_of_one_further_run() -> None:
    values = [0.9, 1.0, 1.2]
    drift = Drift.of(values)
    half = 4.302652729749464 * statistics.stdev(values) * math.sqrt(4 / 3)
    assert drift.low == round(statistics.mean(values) - half, 4)
    assert drift.high == round(statistics.mean(values) + half, 4)


def test_equal_runs_still_give_a_band_and_one_run_the_default() -> None:
    equal = Drift.of([1.1, 1.1, 1.1])
    assert (equal.std, equal.low, equal.high) == (0.0, 0.95, 1.12)
    assert not equal.compatible
    one = Drift.of([0.97])
    assert (one.low, one.high, one.compatible) == (0.95, 1.05, True)


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=9))
def test_band_holds_mean_and_default_band(values: list[float]) -> None:
    drift = Drift.of(values)
    assert drift.low <= 0.95 and drift.high >= 1.05
    if len(values) > 1:
        assert drift.low - 1e-4 <= drift.mean <= drift.high + 1e-4


@pytest.mark.parametrize("values", [[], [0.0], [1.0, math.nan], [math.inf], [-1.0]])
def test_drifts_that_are_no_ratios_are_refused(values: list[float]) -> None:
    with pytest.raises(EvidenceError):
        Drift.of(values)


def test_preset_and_statistics() -> None:
    preset, stats = derive(
        [report(1, 1.0), report(2, 1.02)],
        baseline="m/models/baseline",
        guards_order=("invariants",),
        seed=42,
        noop_shift=3e-4,
    )
    meta = preset["_calibration_meta"]
    assert (meta["model_name"], meta["num_runs"], meta["tier"]) == ("m", 2, "balanced")
    assert meta["drift_mean"] == pytest.approx(1.01)
    assert set(meta["suggested_drift_band"]) == {"min", "max"}
    assert (preset["dataset"]["preview_n"], preset["dataset"]["final_n"]) == (4, 5)
    assert "primary_metric" not in preset
    assert stats["runs"] == [1, 2]
    assert meta["noop_shift"] == stats["noop_shift"] == 3e-4
    assert stats["drift"]["gates"] is False


def test_runs_that_disagree_and_no_runs_are_refused() -> None:
    with pytest.raises(EvidenceError, match="differ in compute"):
        derive(
            [report(1, 1.0), report(2, 1.0, compute={"batch": 4})],
            baseline="b",
            guards_order=(),
            seed=1,
            noop_shift=0.0,
        )
    with pytest.raises(EvidenceError, match="no calibration run"):
        derive([], baseline="b", guards_order=(), seed=1, noop_shift=0.0)


@pytest.mark.parametrize("content", ["[", "1", "_calibration_meta: {}", "!!python/object:os.system {}"])
def test_a_preset_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text(content)
    with pytest.raises(EvidenceError, match="redo derive_preset"):
        read_preset(file)
    with pytest.raises(EvidenceError, match="cannot be read"):
        read_preset(tmp_path / "absent.yaml")

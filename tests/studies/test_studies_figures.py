"""Counting, curves, placements: known answers without a model."""

from __future__ import annotations

import math

import numpy
import pytest
import torch  # noqa: TID253

from evpack.assets.fixture import fixture_model
from evpack.checkpoint.reader import Checkpoint
from evpack.faults.driver import injection_for
from evpack.faults.injection import Victim
from studies.harmless import half_ulp_noise, reshard
from studies.known import SPATIAL, SPATIAL_VARIANCE, known_answers, plain_bca
from studies.pictures import picture
from studies.proportion import proportion
from studies.roc import _area, _points
from studies.rotated import Rotated, rotated_injection


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(0, 200, 0.0, 0.01828), (20, 20, 0.83157, 1.0), (10, 20, 0.27196, 0.72804)]
)
def test_exact_intervals_of_rates(hits: int, trials: int, low: float, high: float) -> None:
    found = proportion(hits, trials)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-5)
    assert found["rate"] == hits / trials


def test_a_rate_without_trials_is_unknown() -> None:
    assert proportion(0, 0) == {"hits": 0, "trials": 0, "rate": None, "low": 0.0, "high": 1.0}


def test_area_under_the_curve() -> None:
    assert _area([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert _area([3.0, 4.0], [1.0, 2.0]) == 0.0
    assert _area([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert _area([], [1.0]) is None
    points = _points([1.0, 3.0], [2.0, 4.0])
    assert points[0] == (0.0, 0.0) and points[-1] == (1.0, 1.0) and (0.0, 0.5) in points


def test_the_picture_names_classes_threshold_and_area() -> None:
    group = {"model": "m<1>", "class": "noop", "n": 3, "least": 0.0, "median": 1e-4, "most": 1e-3}
    drawn = picture(
        {
            "name": "Moved",
            "must_pass": [group],
            "must_exceed": [{**group, "class": "fault", "least": 0.1, "median": 0.2, "most": 0.3}],
            "threshold": 0.05,
            "auc": 1.0,
            "points": [[0, 0], [0, 1], [1, 1]],
        }
    )
    assert drawn.startswith("<svg") and drawn.endswith("</svg>\n")
    for words in ("m&lt;1&gt;: fault (3)", "threshold 0.05", "area 1.0000"):
        assert words in drawn


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(fixture_model())


def test_a_rotated_fault_reaches_every_block_and_is_itself_where_nothing_turns(checkpoint: Checkpoint) -> None:
    names = [rotated_injection(checkpoint, "nan_injection", by).changes[0].name for by in range(4)]
    assert names == [f"model.layers.{block}.self_attn.q_proj.weight" for block in range(4)]
    plain = injection_for("rank_collapse", Victim(checkpoint))
    turned = rotated_injection(checkpoint, "rank_collapse", 0)
    assert [change.name for change in turned.changes] == [change.name for change in plain.changes]
    assert {change.layer for change in rotated_injection(checkpoint, "rank_collapse", 3).changes} == {3, 0}


def test_a_rotated_view_holds_the_same_tensors(checkpoint: Checkpoint) -> None:
    view = Rotated(checkpoint, 1)
    assert view.names() == checkpoint.names()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(view.read(name), checkpoint.read("model.layers.1.mlp.up_proj.weight"))
    assert view.original("model.embed_tokens.weight") == "model.embed_tokens.weight"


def test_half_ulp_noise_is_seeded_and_moves_about_half_of_the_weights_by_one_unit(
    checkpoint: Checkpoint, tmp_path
) -> None:
    from evpack.checkpoint.delta import DeltaCheckpoint

    made = []
    for index, seed in enumerate((1, 1, 2)):
        directory = tmp_path / str(index)
        directory.mkdir()
        half_ulp_noise(checkpoint, directory, "noop", seed)
        made.append(DeltaCheckpoint(checkpoint, directory))
    assert made[0].digest() == made[1].digest() != made[2].digest()
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = checkpoint.read(name).float(), made[0].read(name).float()
    moved = (after != before).float().mean()
    assert 0.4 < float(moved) < 0.6
    assert float(((after - before).abs() / before.abs().clamp_min(1e-30)).max()) <= 2**-7


def test_resharding_changes_no_tensor(checkpoint: Checkpoint, tmp_path) -> None:
    reshard(checkpoint, tmp_path, "noop", 3)
    again = Checkpoint(tmp_path)
    assert len(again.shards) > 1
    assert again.digest() == checkpoint.digest()


def test_bca_reproduces_a_published_interval() -> None:
    found = plain_bca(SPATIAL, lambda x, axis: x.var(axis=axis), 0.10, 20000, seed=1)
    assert found == pytest.approx(SPATIAL_VARIANCE, rel=0.02)


def test_known_answers_hold_in_small(checkpoint: Checkpoint) -> None:
    draw = numpy.random.default_rng(0)
    found = known_answers([checkpoint], [list(draw.normal(0.01, 0.02, 64))], matrices=12, draws=6)
    for key in ("sigma_random", "sigma_real"):
        assert found[key]["largest_relative_error"] <= 1e-3
    for noise in found["noise_edge"]:
        assert math.isclose(noise["mean"], noise["expected"], rel_tol=0.03)
    assert found["bca"]["largest_difference_in_widths"] < 0.05

"""The study in small: every kind of subject once, through the real steps, and what is counted of it."""

from __future__ import annotations

import math

import pytest

from evpack.catalog.tuned import load_tuned
from studies.coverage import coverage, differences
from studies.ground import Ground
from studies.judged import measure
from studies.rates import false_alarms, power
from studies.results import QUESTIONS, threshold_results
from studies.subjects import Counts, Subject, subjects
from studies.table import Row, rows

SMALL = Counts(noop=10, mild=3, clean_runs=1, fault_runs=1, places=1, noise_seeds=1, pools=True)
POOLS = ("pool_noop", "pool_magnitude_prune_05")


@pytest.fixture(scope="session")
def measured(ground: Ground) -> list[Subject]:
    found = subjects(ground.baseline, ground.model_plan.id, load_tuned(None), ground.model.runs, SMALL)
    some = [s for s in found if s.kind != "pool" or s.id in POOLS]
    some = [s for s in some if s.kind != "noop" or s.id in ("noop_000", "noop_009")]
    for subject in some:
        assert measure(ground, subject) is not None
    return some


@pytest.fixture(scope="session")
def found(ground: Ground, measured: list[Subject]) -> list[Row]:
    return list(rows(ground, [s for s in measured if s.kind != "pool"], ground.policy))


def test_what_is_measured_is_not_measured_again(ground: Ground, measured: list[Subject]) -> None:
    assert measure(ground, measured[0]) is None
    assert not ground.place.variant(measured[0].id).exists()


def test_harmless_reports_pass_and_noise_of_half_a_unit_moves_next_to_nothing(found: list[Row]) -> None:
    alarms = false_alarms(found)
    assert alarms["harmless"]["failed"]["hits"] == 0
    assert alarms["harmless"]["failed"]["trials"] == 5
    reshard = next(row for row in found if row.subject.family == "reshard")
    assert (
        reshard.statistics["log_ratio"] == reshard.statistics["edge_rms"] == reshard.statistics["spectral_ratio"] == 0
    )
    noise = next(row for row in found if row.subject.family == "half_ulp_noise")
    assert 0 < noise.statistics["edge_rms"] < 1e-3
    assert abs(noise.statistics["log_ratio"]) < 0.002


def test_every_required_injection_and_catastrophic_edit_is_detected(ground: Ground, found: list[Row]) -> None:
    detected = power(ground, found, ground.policy)
    assert {name: entry["detected"]["rate"] for name, entry in detected["required"].items()} == dict.fromkeys(
        detected["required"], 1.0
    )
    assert len(detected["required"]) == 9
    for entry in detected["catastrophic"].values():
        assert entry["truly_fails"]
        assert entry["rejected"]["rate"] == entry["detected"]["rate"] == 1.0


def test_informational_injections_are_signalled_by_their_own_guard(ground: Ground, found: list[Row]) -> None:
    informational = power(ground, found, ground.policy)["informational"]
    own = {name: entry["detected"]["hits"] for name, entry in informational.items() if entry["own_guard"]}
    assert own == {"rmt_norm_noise": 1, "spectral_moderate_scale": 1, "ve_mlp_scale_skew": 1}


def test_thresholds_stand_between_what_must_pass_and_what_must_not(found: list[Row], ground: Ground) -> None:
    for question in threshold_results(found, ground.policy)["questions"]:
        assert question["alarms"] == 0, question["name"]
        assert question["hits"] == sum(group["n"] for group in question["must_exceed"]) > 0, question["name"]
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)


def test_the_gating_interval_covers_on_real_differences(ground: Ground, measured: list[Subject]) -> None:
    pools = [subject for subject in measured if subject.kind == "pool"]
    found = coverage(ground, pools, trials=300, bca_trials=0)
    assert {row["windows"] for row in found} == {16, 32}
    for row in found:
        assert row["pool"] == 128 and math.isfinite(row["truth"])
        assert row["t"]["high"] > 0.93
        assert row["t"]["low"] < 0.97
    assert len(differences(ground, pools[0])) == 128

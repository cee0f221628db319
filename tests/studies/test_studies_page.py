"""The committed results, the page made from them and the tier data belong together."""

from __future__ import annotations

import pytest

from evpack.catalog.policy import resolve_policy
from evpack.files import digest_json, read_json
from studies.page import DOCS, PICTURES, TEMPLATE, page, slug
from studies.pictures import picture
from studies.results import QUESTIONS, RESULTS

CONFIRMED = ("spectral.stable_rank.fatal_ratio", "spectral.norm_collapse.fatal_fraction")
"""Found to lie in a gap, but not chosen by the study."""
THRESHOLDS = read_json(RESULTS / "thresholds.json")


def test_the_page_is_what_the_results_give() -> None:
    made = page(TEMPLATE.read_text(encoding="utf-8"), THRESHOLDS)
    assert (DOCS / "guards.md").read_text(encoding="utf-8") == made, "run `python -m studies docs`"
    for question in THRESHOLDS["questions"]:
        drawn = (PICTURES / f"roc_{slug(question)}.svg").read_text(encoding="utf-8")
        assert drawn == picture(question), question["name"]
        assert len(drawn) < 60_000


@pytest.mark.parametrize("tier", ["balanced", "conservative"])
def test_thresholds_in_force_are_those_of_the_study_and_name_it(tier: str) -> None:
    digest = digest_json({key: THRESHOLDS[key] for key in ("questions", "edge_alternatives")})[:16]
    assert THRESHOLDS["digest"] == digest
    policy = resolve_policy(tier, "small")
    assert [question["key"] for question in THRESHOLDS["questions"]] == [question.key for question in QUESTIONS]
    for question in THRESHOLDS["questions"]:
        value = policy.number(question["key"])
        assert question["threshold"] == pytest.approx(1 / value if question["turned"] else value)
        if question["key"] not in CONFIRMED:
            assert digest in policy.thresholds[question["key"]].origin


def test_every_threshold_lies_in_a_gap() -> None:
    for question in THRESHOLDS["questions"]:
        low, high = question["gap"]
        assert low < question["threshold"] < high, question["name"]
        assert question["alarms"] == 0


@pytest.mark.parametrize("name", ["fixture", "mixture"])
def test_false_alarms_are_bounded_by_two_percent_and_damage_is_found_everywhere(name: str) -> None:
    found = read_json(RESULTS / f"model_{name}.json")
    for kind in ("noop", "mild"):
        failed = found["false_alarms"][kind]["failed"]
        assert failed["trials"] >= 200
        assert failed["high"] <= 0.02
    for scenario, entry in found["power"]["required"].items():
        assert entry["places_detected"] == entry["places"], scenario
        assert entry["detected"]["trials"] >= 20
    for scenario, entry in found["power"]["catastrophic"].items():
        assert not entry["truly_fails"] or entry["detected"]["rate"] == 1.0, scenario
    for scenario, entry in found["power"]["informational"].items():
        assert entry["own_guard"] is None or entry["detected"]["rate"] >= 0.8, scenario


def test_the_gating_interval_covers_at_every_size() -> None:
    found = read_json(RESULTS / "coverage.json")
    assert found["trials"] >= 2000
    assert {row["model"] for row in found["rows"]} >= {"fixture", "mixture"}
    for row in found["rows"]:
        assert 0.93 <= row["t"]["rate"] <= 0.97, (row["model"], row["subject"], row["windows"])


def test_known_answers_are_met() -> None:
    found = read_json(RESULTS / "known_answers.json")
    assert found["sigma_random"]["matrices"] == 200
    for key in ("sigma_random", "sigma_real"):
        assert found[key]["largest_relative_error"] <= found[key]["limit"] == 1e-3
    for noise in found["noise_edge"]:
        assert abs(noise["relative_error"]) < 0.01
    published = found["bca"]["published"]
    assert published["found"] == pytest.approx(published["interval"], rel=0.02)

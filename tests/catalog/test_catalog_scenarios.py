"""The shipped manifests against the table of the specification, and what a manifest may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import evpack
from evpack.catalog.edit_spec import parse_edit_spec
from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.scenarios import EditGeneration, Manifest, Strictness
from evpack.catalog.suites import chosen_scenarios
from evpack.catalog.supported import METRIC_FLAGS, VALIDATION_FLAGS
from evpack.errors import BadInput
from evpack.settings_resolve import resolve

MANIFESTS = ("scenarios.json", "scenarios_core.json")


def manifest(name: str = "scenarios.json") -> Manifest:
    return parse_as(Manifest, shipped(name), name)


def altered(path: Path, **change: Any) -> str:
    """A manifest file whose first scenario was changed; a None value removes the key."""
    value = json.loads(shipped("scenarios_core.json"))
    value["scenarios"][0] = {k: v for k, v in {**value["scenarios"][0], **change}.items() if v is not None}
    path.write_text(json.dumps(value))
    return str(path)


def test_counts_of_the_full_manifest() -> None:
    scenarios = manifest().scenarios
    count = {
        key: sum((s.category.value, s.strictness.value) == key for s in scenarios)
        for key in {(s.category.value, s.strictness.value) for s in scenarios}
    }
    assert count == {
        ("clean", "must_pass"): 4,
        ("stress", "must_fail"): 2,
        ("stress", "informational"): 2,
        ("error_injection", "must_detect"): 9,
        ("error_injection", "informational"): 3,
    }


def test_catastrophic_ones_are_the_required_stress_edits() -> None:
    flagged = {s.id for s in manifest().scenarios if s.requirements.catastrophic_required}
    assert flagged == {"prune_50pct_stress", "svd_rank32_stress"}
    assert all(s.strictness is Strictness.MUST_FAIL for s in manifest().scenarios if s.id in flagged)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_edit_spec_parses(name: str) -> None:
    for scenario in manifest(name).scenarios:
        if isinstance(scenario.generation, EditGeneration):
            assert parse_edit_spec(scenario.generation.edit_spec).clean == (scenario.generation.version == "clean")


def test_core_scenarios_agree_with_the_full_manifest() -> None:
    full = {scenario.generation: scenario for scenario in manifest().scenarios}
    for scenario in manifest("scenarios_core.json").scenarios:
        assert full[scenario.generation].model_copy(update={"id": scenario.id}) == scenario
        if scenario.strictness is Strictness.MUST_PASS:  # its parameters are tuned, so its id must not state any
            assert scenario.id in {"quant_clean", "fp8_clean", "prune_clean", "svd_clean"}
        else:
            assert full[scenario.generation].id == scenario.id


def test_the_core_scenarios_are_all_twenty() -> None:
    core = manifest("scenarios_core.json").scenarios
    assert len({s.generation for s in core}) == 20 == len(manifest().scenarios)
    assert sum(s.strictness is Strictness.MUST_DETECT for s in core) == 9


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_survive_a_round_trip(name: str) -> None:
    once = manifest(name)
    again = parse_as(Manifest, json.dumps(once.to_json()).encode(), name)
    assert again == once


def test_a_manifest_of_ones_own(tmp_path: Path) -> None:
    path = altered(tmp_path / "mine.json", id="mine")
    chosen = chosen_scenarios(resolve({"suite": "demo", "scenarios": path}, {}, {}, {}))
    assert chosen.scenarios[0].id == "mine" and chosen.scenarios[1:] == manifest("scenarios_core.json").scenarios[1:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "nan_injection"}, "stands twice"),
        ({"id": "NAN_injection"}, "differ only in case"),
        ({"id": "../x"}, "not a valid id"),
        ({"id": "calibration"}, "reserved"),
        ({"strictness": "should_pass"}, "strictness"),
        ({"category": "stress"}, "does not fit category"),
        ({"strictness": "must_detect"}, "needs detectors_any_of"),
        ({"failure_class": None}, "failure_class"),
        ({"colour": "red"}, "colour"),
        ({"requirements": {"detectors_any_of": [{"type": "oracle"}]}}, "detectors_any_of"),
    ],
)
def test_faults_of_a_manifest(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = altered(tmp_path / "mine.json", **change)
    with pytest.raises(BadInput, match=r"mine\.json") as caught:
        chosen_scenarios(resolve({"suite": "demo", "scenarios": path}, {}, {}, {}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("detector", "wrong", "known"),
    [
        ({"type": "probe", "file": "rmt_prob.json"}, "'rmt_prob.json'", "rmt_probe.json, ve_probe.json"),
        ({"type": "validation_flag", "flag": "spectral_stabel", "expected": False}, "'spectral_stabel'", "rmt_stable"),
        ({"type": "primary_metric", "field": "degrade", "expected": True}, "'degrade'", "degraded, detected_shift"),
        ({"type": "guard_remediation", "guard": "spectrl", "field": "caps_applied"}, "'spectrl'", "rmt, spectral"),
        ({"type": "invariants_status", "allowed": ["fail", "FAILED"]}, "'FAILED'", "error, fail"),
    ],
)
def test_a_detector_that_can_never_hit_is_refused(
    tmp_path: Path, detector: dict[str, Any], wrong: str, known: str
) -> None:
    path = altered(tmp_path / "mine.json", id="mine", requirements={"detectors_any_of": [detector]})
    with pytest.raises(BadInput) as caught:
        chosen_scenarios(resolve({"suite": "demo", "scenarios": path}, {}, {}, {}))
    said = str(caught.value)
    assert "'mine'" in said and wrong in said and known in said


def test_flags_that_a_detector_may_name_are_those_of_the_report() -> None:
    schema = json.loads((Path(evpack.__file__).parent / "evaluation" / "report.schema.json").read_text())
    properties = schema["properties"]
    assert set(properties["validation"]["properties"]) == VALIDATION_FLAGS
    metric = properties["primary_metric"]["properties"]
    assert {name for name, part in metric.items() if "boolean" in part.get("type", ())} == METRIC_FLAGS


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "x"}', '{"schema": "x", "schema": "y"}', ""])
def test_files_that_are_no_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"mine\.json"):
        chosen_scenarios(resolve({"suite": "demo", "scenarios": str(path)}, {}, {}, {}))


def test_manifest_that_is_not_there() -> None:
    with pytest.raises(BadInput, match="does not exist"):
        chosen_scenarios(resolve({"suite": "demo", "scenarios": "/no/such.json"}, {}, {}, {}))

"""Changes of lane: which may follow from a plan, what stays the same, what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import EvidenceError
from evpack.files import write_json
from evpack.plan.lane_changes import LaneChange, LaneChanges
from evpack.plan.lanes import DEVICE_COUNTS, LANES, next_lane
from evpack.plan.memory import devices_of
from evpack.plan.model import CampaignPlan, StepPlan, StepType, load_plan
from evpack.rundir import RunDir
from evpack.settings import Settings
from tests.plans import campaign_plan, model_plan, planned_run

MODELS = (model_plan("a", lane="gpu1_s", devices=1), model_plan("b", lane="gpu1_s", devices=1))
STEPS = tuple(
    StepPlan(id=f"{name}.{type_}", type=type_, model=name, lane="gpu1_s")
    for name in ("a", "b")
    for type_ in (StepType.SETUP_BASELINE, StepType.CALIBRATE)
)
CHANGE = LaneChange(
    model="a",
    from_lane="gpu1_s",
    to_lane="gpu2_s",
    step="a.calibrate",
    batch=4,
    changed_at="2026-11-23T12:00:00Z",
    dag_run="resumed",
)


def changed(**fields: Any) -> LaneChange:
    return CHANGE.model_copy(update=fields)


@pytest.fixture
def plan() -> CampaignPlan:
    return campaign_plan(STEPS, models=MODELS)


@pytest.mark.parametrize(
    ("lane", "devices", "following"),
    [
        ("gpu1_s", 8, "gpu2_s"),
        ("gpu1_s", 2, "gpu2_s"),
        ("gpu1_s", 1, None),
        ("gpu2_m", 8, "gpu4_m"),
        ("gpu2_m", 3, None),
        ("gpu4_x", 8, "gpu8_x"),
        ("gpu8_x", 64, None),
        ("cpu_s", 8, None),
        ("nowhere", 8, None),
    ],
)
def test_the_next_lane_has_the_next_larger_device_count(lane: str, devices: int, following: str | None) -> None:
    found = next_lane(lane, devices)
    assert (found and found.id) == following


@given(st.sampled_from(LANES), st.integers(0, 16))
def test_lanes_only_grow_and_end(lane: Any, devices: int) -> None:
    way = [lane]
    while (following := next_lane(way[-1].id, devices)) is not None:
        way.append(following)
    assert len(way) < len(DEVICE_COUNTS)
    assert all(one.devices < other.devices <= devices for one, other in pairwise(way))
    assert {lane.size_class for lane in way} == {lane.size_class}


def test_a_moved_model_takes_its_steps_along_and_nothing_else_changes(plan: CampaignPlan) -> None:
    moved = plan.moved([CHANGE])
    assert [(model.name, model.lane, model.devices) for model in moved.models] == [
        ("a", "gpu2_s", 2),
        ("b", "gpu1_s", 1),
    ]
    assert {step.lane for step in moved.steps if step.model == "a"} == {"gpu2_s"}
    assert devices_of(moved, moved.step("a.calibrate")) == 2
    assert moved.step("b.calibrate") == plan.step("b.calibrate")
    assert moved.digest() == plan.digest() and moved.as_planned() == plan
    assert moved.lane_changes == (CHANGE,) and plan.lane_changes == ()


def test_changes_follow_each_other(plan: CampaignPlan) -> None:
    further = changed(from_lane="gpu2_s", to_lane="gpu4_s")
    moved = plan.moved([CHANGE, further])
    assert moved.model("a").devices == 4
    assert moved.lane_changes == (CHANGE, further)
    assert (moved.digest(), moved.as_planned()) == (plan.digest(), plan)
    assert plan.moved([CHANGE]).moved([further]).lane_changes == moved.lane_changes


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "c"},
        {"from_lane": "gpu2_s", "to_lane": "gpu4_s"},
        {"to_lane": "gpu4_s"},
        {"to_lane": "gpu2_m"},
        {"to_lane": "gpu1_s"},
        {"to_lane": "nowhere"},
        {"step": "b.calibrate"},
        {"step": "a.nothing"},
    ],
)
def test_what_cannot_follow_from_the_plan_is_refused(plan: CampaignPlan, wrong: dict[str, str]) -> None:
    with pytest.raises(EvidenceError, match="no such change of lane"):
        plan.moved([changed(**wrong)])


def test_a_model_on_the_processor_is_never_moved() -> None:
    steps = (StepPlan(id="m.calibrate", type=StepType.CALIBRATE, model="m", lane="cpu_s"),)
    with pytest.raises(EvidenceError):
        campaign_plan(steps).moved([changed(model="m", step="m.calibrate", from_lane="cpu_s", to_lane="gpu1_s")])


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return planned_run(tmp_path / "run", STEPS, Settings(), models=MODELS)


def test_a_plan_is_read_with_its_changes(run: RunDir) -> None:
    plan = load_plan(run)
    before = run.plan.read_bytes()
    write_json(run.lane_changes, LaneChanges(plan_digest=plan.digest(), changes=(CHANGE,)).to_json())
    moved = load_plan(run)
    assert (moved.model("a").lane, moved.lane_changes, moved.digest()) == ("gpu2_s", (CHANGE,), plan.digest())
    assert run.plan.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"plan_digest": "0" * 64}, "of another plan"),
        ({"schema": "evpack_lane_changes_v2"}, "schema"),
        ({"more": 1}, "more"),
        ({"changes": [{}]}, "changes.0"),
        ({"changes": [{**CHANGE.model_dump(), "changed_at": "yesterday"}]}, "changed_at"),
        ({"changes": [{**CHANGE.model_dump(), "to_lane": "gpu8_s"}]}, "no such change"),
    ],
)
def test_changes_that_cannot_be_true_are_refused(run: RunDir, damage: dict[str, Any], said: str) -> None:
    document = LaneChanges(plan_digest=load_plan(run).digest(), changes=(CHANGE,)).to_json()
    run.lane_changes.write_text(json.dumps({**document, **damage}))
    with pytest.raises(EvidenceError, match=said) as caught:
        load_plan(run)
    assert "lane_changes.json" in caught.value.what


def test_the_line_for_people_names_everything() -> None:
    for part in ("a", "gpu1_s", "gpu2_s", "a.calibrate", "batch of 4", "2026-11-23T12:00:00Z", "resumed"):
        assert part in CHANGE.text()
    assert "by hand" in changed(dag_run=None).text()

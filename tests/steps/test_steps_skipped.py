"""An edit that the tuned parameters skip: its steps succeed without output; no plan and no verdict overlooks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.policy import resolve_policy
from evpack.catalog.scenarios import Manifest
from evpack.errors import BadInput, CampaignExit, StepExit
from evpack.files import read_json
from evpack.plan.model import CampaignPlan, StepPlan, StepType, step_id
from evpack.rundir import RunDir
from evpack.runtime.outcome import campaign_outcome
from evpack.settings import Settings
from evpack.steps import runner, state
from evpack.verdict.rules import compile_verdict
from tests.plans import campaign_plan, planned_run

SCENARIO = "quant_clean"
SETTINGS = Settings(min_free_disk_gb=0)
CREATE, EVALUATE = (step_id(kind, "m", SCENARIO) for kind in (StepType.CREATE, StepType.EVALUATE))


def plan_of(status: str) -> CampaignPlan:
    entry = {"status": status, "reason": "no bits pass", "bits": 8, "group_size": 0}
    edit = resolve_edit(parse_edit_spec("quant_rtn:clean:ffn"), entry)
    manifest = parse_as(Manifest, shipped("scenarios_core.json"), "scenarios_core.json")
    where: dict[str, Any] = {"model": "m", "scenario": SCENARIO}
    steps = (
        StepPlan(id=CREATE, type=StepType.CREATE, edit=edit, **where),
        StepPlan(id=EVALUATE, type=StepType.EVALUATE, needs=(CREATE,), runs=(1, 2, 3), **where),
    )
    scenarios = tuple(scenario for scenario in manifest.scenarios if scenario.id == SCENARIO)
    return campaign_plan(steps, SETTINGS, scenarios=scenarios)


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[str], RunDir]:
    def make(status: str) -> RunDir:
        plan = plan_of(status)
        return planned_run(tmp_path / status, plan.steps, SETTINGS, scenarios=plan.scenarios)

    return make


def test_steps_of_a_skipped_edit_succeed_without_output(planned: Callable[[str], RunDir]) -> None:
    run = planned("skipped")
    for step in (CREATE, EVALUATE):
        assert runner.run_step(run.root, step) is StepExit.OK
        assert read_json(run.marker(step))["outputs"] == {}
        assert "no bits pass" in run.task_log(step).read_text()
    assert not (run.root / "m").exists()
    assert runner.run_step(run.root, EVALUATE) is StepExit.OK
    assert "done already" in run.task_log(EVALUATE).read_text()


def test_without_a_pack_the_verdict_alone_counts(tmp_path: Path) -> None:
    closing = [StepType.COMPILE_VERDICT, StepType.BUILD_PACK, StepType.VERIFY_PACK]
    steps = [StepPlan(id=kind.value, type=kind) for kind in closing]
    run = planned_run(tmp_path / "run", steps, SETTINGS.model_copy(update={"build_pack": False}))
    run.final_verdict.parent.mkdir()
    run.final_verdict.write_text('{"verdict": "PASS"}')
    state.write_marker(run, steps[0], input_digest="", published=[run.final_verdict], dag_run="one", attempt=1)
    for step in steps[1:]:
        assert runner.run_step(run.root, step.id, dag_run="one") is StepExit.OK
        assert "PACK_BUILD is off" in run.task_log(step.id).read_text()
    outcome = campaign_outcome(run, dag_run="one")
    assert outcome.exit is CampaignExit.PASS and outcome.pack is None and outcome.problems == ()


def test_a_selected_edit_is_not_skipped(planned: Callable[[str], RunDir]) -> None:
    assert runner.run_step(planned("selected").root, CREATE) is not StepExit.OK


def test_what_was_skipped_is_missing_in_the_verdict() -> None:
    plan = plan_of("skipped")
    policy = resolve_policy("balanced", "small")
    verdict = compile_verdict(plan, {}, policy, guards_order=["invariants"], timestamp="2026-01-01T00:00:00Z")
    assert verdict.word == "INCOMPLETE"
    assert verdict.document["missing"]["by_model"] == {"m": {"clean": [SCENARIO]}}


def test_a_campaign_is_not_planned_with_a_skipped_edit(tmp_path: Path) -> None:
    from evpack.catalog.tuned import TunedParams
    from evpack.plan.preflight import check_selected, resolve_edits

    class Model:
        id = "M"

    tuned = TunedParams({"models": {"M": {"quant_rtn": {"status": "skipped", "reason": "no bits pass"}}}})
    edits = resolve_edits([Model()], plan_of("selected").scenarios, tuned)  # type: ignore[list-item]
    with pytest.raises(BadInput, match="M:quant_rtn:skipped"):
        check_selected(edits)

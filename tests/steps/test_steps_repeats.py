"""--repeats: one evaluation made again gives the same report, and what does not is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_engine_steps import CLEAN, DOWN, FAULT, Campaign, source, text  # noqa: F401 - fixtures

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.scenarios import Category
from evpack.evaluation.report import check_report, report_digest
from evpack.files import read_json
from evpack.plan.model import CampaignPlan, StepPlan, StepType, step_id
from evpack.steps import evaluate as evaluation
from evpack.steps.base import StepContext
from evpack.steps.calibrate import calibrate
from evpack.steps.derive_preset import derive_preset
from evpack.steps.repeats import repeated_step
from evpack.steps.setup_baseline import setup_baseline


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, source: Path, text: Path) -> Path:  # noqa: F811
    campaign = Campaign(tmp_path_factory.mktemp("calibrated"), source, text)
    for type_, step in (
        (StepType.SETUP_BASELINE, setup_baseline),
        (StepType.CALIBRATE, calibrate),
        (StepType.DERIVE_PRESET, derive_preset),
    ):
        step(campaign.context(type_))
    return campaign.root


@pytest.fixture
def ready(calibrated: Path, tmp_path: Path, source: Path, text: Path) -> Campaign:  # noqa: F811
    shutil.copytree(calibrated, tmp_path / "campaign", symlinks=True)
    campaign = Campaign(tmp_path / "campaign", source, text)
    campaign.variant(CLEAN, {DOWN: lambda t: t * 1.02}, declared=True)
    return campaign


def repeating(campaign: Campaign, **settings: object) -> StepContext:
    """The evaluation of the clean edit, in a plan that names its cell as real plans do."""
    context = campaign.context(StepType.EVALUATE, CLEAN, repeats=2, **settings)
    steps = (cell(StepType.CREATE, "clean"), cell(StepType.EVALUATE, "clean"))
    plan = context.plan.model_copy(update={"steps": steps})
    return StepContext(context.run, plan, context.settings, steps[1], context.home)


def cell(type_: StepType, scenario: str, status: str = "selected") -> StepPlan:
    edit = ResolvedEdit(
        spec="magnitude_prune:clean:ffn", edit_type="magnitude_prune", scope="ffn", status=status, reason="r"
    )
    return StepPlan(
        id=step_id(type_, "tiny", scenario),
        type=type_,
        model="tiny",
        scenario=scenario,
        runs=(1, 2),
        edit=edit if type_ is StepType.CREATE and scenario != "fault" else None,
    )


def test_repeats_in_strict_mode_give_the_same_digest_as_the_published_report(ready: Campaign) -> None:
    calibrate(ready.context(StepType.CALIBRATE, determinism="strict"))
    published = evaluation.evaluate(repeating(ready, determinism="strict"))
    found = read_json(published[-1])
    assert published[-1].name == "determinism_repeats.json" and found["cert_hashes_match"] is True
    assert (found["requested"], found["completed"], found["mode"], found["errors"]) == (2, 2, "strict", [])
    report = check_report((published[0] / "evaluation.report.json").read_bytes())
    assert found["cert_hashes"] == [report_digest(report)] * 3
    assert found["primary_metric_ratio"]["delta"] == 0.0
    assert found["edit_name"] == "clean" and found["run"] == 1


def test_a_repeat_that_differs_or_breaks_is_written_down(ready: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = evaluation.Subject.load, []

    def shaky(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise ZeroDivisionError("broken")
        subject = original(*arguments)
        if len(calls) == 3:
            subject.failure, subject.model = "lost", None
        return subject

    monkeypatch.setattr(evaluation.Subject, "load", shaky)
    found = read_json(evaluation.evaluate(repeating(ready))[-1])
    assert found["cert_hashes_match"] is False and found["completed"] == 1
    assert "ZeroDivisionError" in found["errors"][0] and len(set(found["cert_hashes"])) == 2
    assert found["primary_metric_ratio"] is None


def test_only_the_first_clean_edit_that_is_made_is_repeated(ready: Campaign) -> None:
    assert len(evaluation.evaluate(ready.context(StepType.EVALUATE, CLEAN))) == 2
    base = ready.context(StepType.EVALUATE, CLEAN).plan
    stress = CLEAN.model_copy(update={"id": "stress", "category": Category.STRESS})

    def plan(status: str, *scenarios: str) -> CampaignPlan:
        steps = [
            cell(t, s, status if s == "clean" else "selected")
            for t in (StepType.CREATE, StepType.EVALUATE)
            for s in scenarios
        ]
        return base.model_copy(update={"steps": tuple(steps), "scenarios": (FAULT, stress, CLEAN)})

    def chosen(status: str, *scenarios: str) -> str | None:
        step = repeated_step(plan(status, *scenarios))
        return step.scenario if step else None

    assert chosen("selected", "fault", "stress", "clean") == "clean"
    assert chosen("skipped", "fault", "stress", "clean") == "stress"
    assert chosen("selected", "fault") is None

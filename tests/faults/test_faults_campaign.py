"""The fixture suite from plan to verdict: every required injection is detected, and by what it is meant to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evpack.errors import StepExit
from evpack.files import read_json
from evpack.home import ENV_NAME, Home
from evpack.plan.model import StepType
from evpack.steps.plan import open_campaign
from evpack.steps.runner import run_step

BY_GUARD = {
    "nan_injection": "fail",
    "inf_injection": "fail",
    "shape_mismatch": "fail",
    "missing_tensors": "fail",
    "weight_tying_break": "warn",
}
BY_METRIC = ("extreme_quant", "scale_explosion", "rank_collapse", "norm_collapse")


@pytest.fixture(scope="module")
def runs() -> dict[str, Path]:
    """What `campaign` made already."""
    return {}


@pytest.fixture
def campaign(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with the verdict of the fixture suite; made once, in the first test's cleaned environment."""
    if "fixture" not in runs:
        monkeypatch.setenv(ENV_NAME, str(tmp_path / "home"))
        params = {"suite": "fixture", "output_dir": str(tmp_path / "run"), "min_free_disk_gb": 0, "num_gpus": 0}
        run, plan = open_campaign(params, Home.locate())
        for step in plan.steps:
            assert run_step(run.root, step.id) is StepExit.OK, step.id
            if step.type is StepType.COMPILE_VERDICT:
                break
        runs["fixture"] = run.root
    return runs["fixture"]


def report_of(campaign: Path, scenario: str) -> dict[str, Any]:
    value: dict[str, Any] = read_json(campaign / "fixture/reports/errors" / scenario / "evaluation.report.json")
    return value


def test_the_fixture_passes(campaign: Path) -> None:
    verdict = read_json(campaign / "reports/final_verdict.json")
    assert verdict["verdict"] == "PASS", verdict["failed_requirements"]


@pytest.mark.parametrize(("scenario", "status"), BY_GUARD.items())
def test_damage_to_structure_is_found_without_the_metric(campaign: Path, scenario: str, status: str) -> None:
    report = report_of(campaign, scenario)
    assert report["invariants"]["status"] == status
    assert report["primary_metric"]["degraded"] == (scenario in ("nan_injection", "inf_injection"))


@pytest.mark.parametrize("scenario", BY_METRIC)
def test_damage_to_values_is_found_by_the_metric(campaign: Path, scenario: str) -> None:
    report = report_of(campaign, scenario)
    assert report["invariants"]["status"] == "pass"
    assert report["primary_metric"]["outcome"] == "reject"
    assert report["validation"]["primary_metric_acceptable"] is False


def test_another_vocabulary_hardly_costs_anything(campaign: Path) -> None:
    """Why the guard has to see it: the metric accepts."""
    assert report_of(campaign, "shape_mismatch")["primary_metric"]["outcome"] == "accept"

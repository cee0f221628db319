"""The commands plan, suites and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from evpack.cli import campaign, plan, revisions, settings, suites
from evpack.errors import BadInput, CampaignExit, StepExit
from evpack.plan.model import load_plan
from evpack.plan.nvml import SIMULATED_ENV
from evpack.rundir import RunDir
from evpack.settings_docs import tuning_page
from evpack.steps.state import Attempt


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.chdir(tmp_path)
    application = typer.Typer()
    for module in (plan, suites, settings):
        module.register(application)
    return application


def output(app: typer.Typer, *words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.exception
    return result.output


FIXTURE = ("plan", "--suite", "fixture", "-p", "min_free_disk_gb=0")


def test_plan_shows_and_writes_nothing(app: typer.Typer, tmp_path: Path) -> None:
    text = output(app, *FIXTURE, "-p", "scenarios=nan_injection")
    assert "fixture: 0.001 GB, 0 devices, lane cpu_s, 5 steps" in text
    assert "nan_injection: must_detect, 1 runs" in text
    assert "a run has 32 + 32 windows of 128 tokens (tier balanced, profile small)" in text
    assert list(tmp_path.iterdir()) == []


def test_a_profile_asks_for_more_windows_than_the_text_has(app: typer.Typer) -> None:
    said = CliRunner().invoke(app, [*FIXTURE, "-p", "profile=ci"]).exception
    assert isinstance(said, BadInput) and "(3 runs x (240 + 240))" in said.what


def test_plan_writes_a_run_directory(app: typer.Typer, tmp_path: Path) -> None:
    assert "planned in" in output(app, *FIXTURE, "--out", "run")
    assert load_plan(RunDir(tmp_path / "run")).suite == "fixture"
    assert "planned in" in output(app, "plan", "--out", "run")


def test_a_model_without_memory_is_taken_up_in_the_next_lane(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.register(app)
    devices = [{"uuid": f"GPU-{number}", "memory_gb": 80} for number in range(2)]
    (tmp_path / "gpus.json").write_text(json.dumps({"devices": devices}))
    monkeypatch.setenv(SIMULATED_ENV, str(tmp_path / "gpus.json"))
    monkeypatch.delenv("NUM_GPUS")
    run = RunDir(tmp_path / "run")

    def status() -> str:
        result = CliRunner().invoke(app, ["campaign", "status", "run"])
        assert result.exit_code == CampaignExit.INCOMPLETE, result.exception
        return " ".join(result.output.split())

    def starve(lane: str) -> None:
        for number in (1, 2, 3):
            Attempt(run, "fixture.calibrate", number, None, lane).end(StepExit.OUT_OF_MEMORY, "no memory")

    assert "1 devices, lane gpu1_s" in output(app, *FIXTURE, "--out", "run")
    assert "moved" not in status() and "no next lane" not in status()
    starve("gpu1_s")
    assert "fixture.calibrate ran out of memory; the next resume moves its model to lane gpu2_s" in status()
    text = output(app, "plan", "--out", "run")
    assert "2 devices, lane gpu2_s" in text
    line = "fixture moved from lane gpu1_s to gpu2_s, because fixture.calibrate ran out of memory"
    assert line in text and line in status()
    starve("gpu2_s")
    assert line in status()
    assert "has no next lane: its model has 2 devices, this host gives the campaign 2" in status()
    assert "mend: plan a new campaign with a lower INVARLOCK_EVAL_BATCH or INVARLOCK_SEQ_LEN" in status()


def test_misspelt_variables_are_told(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INVARLOCK_PREVEW_WINDOWS", "3")
    for words in ((*FIXTURE, "-p", "scenarios=nan_injection"), ("settings", "show")):
        caplog.clear()
        output(app, *words)
        (line,) = [record.getMessage() for record in caplog.records if "PREVEW" in record.getMessage()]
        assert "has no effect; did you mean INVARLOCK_PREVIEW_WINDOWS?" in line


@pytest.mark.parametrize(
    ("item", "said"),
    [("seq_len", "not name=value"), ("=3", "not name=value"), ("preview_windows=-4", "preview_windows='-4'")],
)
def test_plan_refuses_bad_params(app: typer.Typer, item: str, said: str) -> None:
    result = CliRunner().invoke(app, [*FIXTURE, "-p", item])
    assert isinstance(result.exception, BadInput) and said in result.exception.what


def test_a_refusal_begins_with_the_suite_that_nobody_named(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("plan", "-p", "models=/no/such", "-p", "min_free_disk_gb=0")
    said = CliRunner().invoke(app, list(wrong)).exception
    assert isinstance(said, BadInput) and said.diagnostics().startswith("suite subset (no other was named): ")
    said = CliRunner().invoke(app, [*wrong, "--suite", "fixture"]).exception
    assert isinstance(said, BadInput) and said.what == "model path /no/such does not exist"
    monkeypatch.setenv("PACK_SUITE", "fixture")
    said = CliRunner().invoke(app, list(wrong)).exception
    assert isinstance(said, BadInput) and said.what == "model path /no/such does not exist"


def test_no_pinned_model_is_said(app: typer.Typer, tmp_path: Path) -> None:
    revisions.register(app)
    assert f"no model is pinned in {tmp_path / 'home'}" in output(app, "revisions", "show")


def test_a_pin_that_is_no_object_is_named(app: typer.Typer, tmp_path: Path) -> None:
    revisions.register(app)
    (tmp_path / "pins.json").write_text('{"models": {"a/b": 5}}')
    result = CliRunner().invoke(app, ["revisions", "show", "--file", "pins.json"])
    assert isinstance(result.exception, BadInput) and "model 'a/b' is 5, no object" in result.exception.what


def test_text_too_short_is_refused(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Four score and seven years ago. " * 20)
    result = CliRunner().invoke(app, [*FIXTURE, "-p", f"text_path={tmp_path / 'short.txt'}", "--out", "run"])
    assert isinstance(result.exception, BadInput)
    assert not (tmp_path / "run").exists()


def test_suites_are_listed(app: typer.Typer) -> None:
    assert "mistralai/Mixtral-8x7B-v0.1" in output(app, "suites")
    assert "magnitude_prune:clean:ffn" in output(app, "suites", "demo")


def test_settings_commands(app: typer.Typer) -> None:
    assert '"seq_len": 64' in output(app, "settings", "show", "--suite", "fixture", "-p", "seq_len=64")
    assert output(app, "settings", "docs") == tuning_page()

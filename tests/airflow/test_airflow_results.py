"""What a run directory says: progress from markers and attempts, the outcome, the verdict table."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evpack.airflow.items import cell_items, model_items, used_lanes
from evpack.cli.campaign_view import LiveView, console
from evpack.cli.main import build_app
from evpack.errors import CampaignExit, StepExit
from evpack.files import write_json
from evpack.home import Home
from evpack.pack import keys
from evpack.plan.hosts import HOSTS_ENV
from evpack.plan.model import CLOSING, CampaignPlan, StepType
from evpack.rundir import RunDir
from evpack.runtime.outcome import campaign_outcome, verify_command
from evpack.runtime.progress import Estimate, ModelProgress, read_progress
from evpack.runtime.results import verdict_rows
from evpack.runtime.threads import threads_for
from evpack.steps.plan import open_campaign
from evpack.steps.state import Attempt, write_marker


@pytest.fixture
def planned(tmp_path: Path, scenarios: dict[str, str]) -> tuple[RunDir, CampaignPlan]:
    params = {"suite": "fixture", "scenarios": list(scenarios.values()), "output_dir": str(tmp_path / "run")}
    return open_campaign(params, Home(tmp_path / "home"), environ={"NUM_GPUS": "0"})


def finish(run: RunDir, plan: CampaignPlan, step_id: str, dag_run: str | None = None) -> None:
    output = run.root / "made" / step_id
    output.parent.mkdir(exist_ok=True)
    output.write_text("x", encoding="utf-8")
    write_marker(run, plan.step(step_id), input_digest="d", published=[output], dag_run=dag_run, attempt=1)


def close(run: RunDir, plan: CampaignPlan, verdict: str, *, ok: bool = True, dag_run: str | None = None) -> None:
    for step in CLOSING:
        finish(run, plan, step.value, dag_run)
    write_json(run.final_verdict, {"verdict": verdict})
    write_json(run.reports / "pack_verification.json", {"ok": ok, "exit": 0 if ok else 7})


def test_items_follow_the_plan(planned: tuple[RunDir, CampaignPlan]) -> None:
    _, plan = planned
    [lane] = used_lanes(plan)
    model = plan.models[0]
    assert model_items(plan, lane) == [{"subject": model.name, "label": model.label}]
    assert cell_items(plan, lane) == [
        {"subject": f"{model.name}.{scenario.id}", "label": f"{model.label} · {scenario.id}"}
        for scenario in plan.scenarios
    ]
    known = {step.id for step in plan.steps}
    assert {f"{item['subject']}.{StepType.EVALUATE}" for item in cell_items(plan, lane)} <= known
    assert cell_items(plan, "gpu8_x") == []


def test_progress_counts_cells_by_their_first_open_step(
    planned: tuple[RunDir, CampaignPlan], scenarios: dict[str, str]
) -> None:
    run, plan = planned
    [model] = read_progress(run, plan)
    assert (model.preparation, model.done, model.waiting) == ("setup_baseline waiting", 0, len(scenarios))
    for step in ("setup_baseline", "calibrate", "derive_preset"):
        finish(run, plan, f"fixture.{step}")
    clean, stress, error = scenarios["clean"], scenarios["stress"], scenarios["error_injection"]
    finish(run, plan, f"fixture.{clean}.create")
    finish(run, plan, f"fixture.{clean}.evaluate")
    finish(run, plan, f"fixture.{stress}.create")
    Attempt(run, f"fixture.{stress}.evaluate", 1, None).begin()
    Attempt(run, f"fixture.{error}.create", 1, None).end(StepExit.PERMANENT, "shard broken")
    [model] = read_progress(run, plan)
    assert model.preparation == "ready"
    assert (model.done, model.waiting) == (1, len(scenarios) - 3)
    assert model.running == (f"{stress} (evaluate)",)
    assert model.failed == (error,)


def test_the_estimate_follows_the_pace_seen() -> None:
    estimate = Estimate()

    def seen(done: int, running: int, failed: int = 0) -> list[ModelProgress]:
        return [ModelProgress("m", preparation, 10, done, ("x",) * running, ("y",) * failed)]

    preparation = "calibrate running"  # variants may be made meanwhile, which says nothing about the pace
    assert estimate.update(seen(0, 1), now=-99.0) is None
    preparation = "ready"
    assert estimate.update(seen(2, 0), now=0.0) is None
    assert estimate.update(seen(2, 1), now=10.0) is None
    assert estimate.update(seen(2, 1), now=15.0) is None
    assert estimate.update(seen(4, 1), now=30.0) == pytest.approx(60.0)
    assert estimate.update(seen(4, 1, failed=6), now=30.0) == pytest.approx(0.0)


@pytest.mark.parametrize("word", ["PASS", "FAIL", "INCOMPLETE"])
def test_the_outcome_is_the_verdict_when_the_pack_verifies(planned: tuple[RunDir, CampaignPlan], word: str) -> None:
    run, plan = planned
    close(run, plan, word)
    outcome = campaign_outcome(run)
    assert (outcome.exit, outcome.problems) == (CampaignExit[word], ())


def test_nothing_missing_or_stale_is_ever_a_pass(planned: tuple[RunDir, CampaignPlan]) -> None:
    run, plan = planned
    assert campaign_outcome(run).exit is CampaignExit.INCOMPLETE
    close(run, plan, "PASS", dag_run="one")
    assert campaign_outcome(run, dag_run="one").exit is CampaignExit.PASS
    assert campaign_outcome(run, dag_run="two").exit is CampaignExit.INCOMPLETE
    close(run, plan, "PASS", ok=False)
    assert "verifier exit 7" in campaign_outcome(run).line()
    for broken in ("", "{", "[]", '{"verdict": 1}', '{"verdict": "GREAT"}'):
        close(run, plan, "PASS")
        run.final_verdict.write_text(broken)
        assert campaign_outcome(run).exit is CampaignExit.INCOMPLETE
    for step in CLOSING:
        close(run, plan, "PASS")
        run.marker(step.value).unlink()
        assert campaign_outcome(run).exit is CampaignExit.INCOMPLETE
        close(run, plan, "PASS")
        (run.root / "made" / step.value).write_text("y", encoding="utf-8")
        assert campaign_outcome(run).exit is CampaignExit.INCOMPLETE


def test_the_verify_command_names_the_key_that_signed(tmp_path: Path) -> None:
    home = Home(tmp_path / "a home")
    own = tmp_path / "own.key"
    fingerprint = keys.write_keypair(own)

    def command(name: str, environ: dict[str, str], signer: str | None = fingerprint) -> list[str] | None:
        params = {"suite": "fixture", "scenarios": "nan_injection", "output_dir": str(tmp_path / name)}
        run, _ = open_campaign(params, home, environ={"NUM_GPUS": "0", **environ})
        run.pack.mkdir()
        write_json(run.reports / "pack_verification.json", {"ok": True, "exit": 0, "signer_fingerprint": signer})
        line = verify_command(run, campaign_outcome(run), home)
        return None if line is None else shlex.split(line)

    def expected(name: str, *trusted: str) -> list[str]:
        return ["evpack", "verify", "--strict", *trusted, str(tmp_path / name / "evidence_pack")]

    assert command("one", {}) == expected("one", "--trusted-key", str(home.keys / "signing_key.pub.pem"))
    given = {"PACK_SIGNING_KEY": str(own)}
    assert command("two", given) == expected("two", "--trusted-key", str(keys.public_path(own)))
    keys.public_path(own).unlink()
    assert command("three", given) == expected("three", "--expected-fingerprint", fingerprint)
    limits = tmp_path / "limits.yaml"
    limits.write_text("primary_metric: {acceptance_range: {min: 0.9, max: 1.25}}", encoding="utf-8")
    assert "--policy" in (command("own", {"PACK_CONFIG_FILE": str(limits)}) or [])
    assert command("four", {"PACK_SIGN_MANIFEST": "0"}, signer=None) is None


def test_the_list_tells_running_campaigns_from_ended_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    monkeypatch.setenv("EVPACK_HOME", str(home.root))

    def listed() -> str:
        [line] = CliRunner().invoke(build_app(), ["campaign", "list"]).output.splitlines()
        return line.split()[1]

    params = {"suite": "fixture", "scenarios": "nan_injection"}
    run, plan = open_campaign(
        params, home, default_root=home.run_dir("evidence_pack", "one"), environ={"NUM_GPUS": "0"}
    )
    assert listed() == "INCOMPLETE"
    attempt = Attempt(run, "fixture.setup_baseline", 1, None)
    attempt.begin()
    assert listed() == "RUNNING"
    attempt.end(StepExit.PERMANENT, "broken")
    assert listed() == "INCOMPLETE"
    close(run, plan, "PASS")
    assert listed() == "PASS"


def test_a_directory_without_a_plan_is_incomplete(tmp_path: Path) -> None:
    assert campaign_outcome(RunDir(tmp_path)).exit is CampaignExit.INCOMPLETE


def test_rows_without_reports_are_not_met(planned: tuple[RunDir, CampaignPlan]) -> None:
    run, plan = planned
    rows = verdict_rows(run, plan)
    assert [row.scenario for row in rows] == [scenario.id for scenario in plan.scenarios]
    assert {(row.met, row.got, row.ratio, row.guards) for row in rows} == {(False, "missing", None, "-")}
    assert all(row.problem and row.edit for row in rows)


def test_a_lone_models_calibration_gets_all_cores(
    planned: tuple[RunDir, CampaignPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evpack.runtime import threads

    _, plan = planned
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads, "cpu_slots", lambda: 4)
    (calibrate,), (evaluate, *_) = (plan.steps_of(type_) for type_ in (StepType.CALIBRATE, StepType.EVALUATE))
    assert threads_for(plan, calibrate) == 8
    assert threads_for(plan, evaluate) == 8 // min(4, len(plan.scenarios))


def test_on_several_hosts_each_shares_its_own_cores(
    planned: tuple[RunDir, CampaignPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evpack.runtime import threads

    _, plan = planned
    monkeypatch.setattr(threads, "cores", lambda: 24)
    monkeypatch.setenv(HOSTS_ENV, "alpha:0x0:3,beta:0x0:2")
    cells = plan.steps_of(StepType.EVALUATE)
    lanes = dict.fromkeys((step.id for step in cells), "cpu_s-alpha") | {cells[-1].id: "cpu_s-beta"}
    steps = (step.model_copy(update={"lane": lanes.get(step.id, step.lane)}) for step in plan.steps)
    shared = plan.model_copy(update={"steps": tuple(steps)})
    found = {step.id: threads_for(shared, step) for step in shared.steps_of(StepType.EVALUATE)}
    assert found == {
        step: 24 if lane.endswith("beta") else 24 // min(3, len(cells) - 1) for step, lane in lanes.items()
    }


def test_plain_lines_appear_when_something_changes(
    planned: tuple[RunDir, CampaignPlan], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plan = planned
    monkeypatch.setattr("evpack.cli.campaign_view.QUIET_S", math.inf)
    with LiveView(run, console()) as view:
        view.update()
        view.update()
        finish(run, plan, "fixture.setup_baseline")
        view.update()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "setup_baseline waiting" in lines[0]
    assert "calibrate waiting" in lines[1]


def test_what_waits_says_for_what_until_it_works(
    planned: tuple[RunDir, CampaignPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    run, plan = planned
    finish(run, plan, "fixture.setup_baseline")
    waiting = Attempt(run, "fixture.calibrate", 1, None)
    waiting.begin()
    waiting.end(StepExit.NO_DEVICE, "GPU-0: 1.5 GB are in use")
    with LiveView(run, console()) as view:
        view.update()
    assert "calibrate waits: GPU-0: 1.5 GB are in use" in capsys.readouterr().out
    assert "calibrate waits: GPU-0: 1.5 GB are in use" in invoke("status", str(run.root))[1]
    Attempt(run, "fixture.calibrate", 1, None).begin()
    assert "waits:" not in invoke("status", str(run.root))[1]


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["campaign", *arguments])
    return result.exit_code, result.output + str(result.exception or "")


def test_status_shows_progress_and_outcome(planned: tuple[RunDir, CampaignPlan]) -> None:
    run, _ = planned
    code, text = invoke("status", str(run.root))
    assert code == CampaignExit.INCOMPLETE
    assert "Verdict: INCOMPLETE" in text
    assert "compile_verdict did not finish" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--suite", "nope"), "nope"),
        (("--suite", "fixture", "--scenarios", "nope"), "nope"),
        (("--suite", "fixture", "--param", "preview_windows=-1"), "preview_windows='-1'"),
        (("--suite", "fixture", "--param", "models=/nope"), "/nope"),
        (("--suite", "fixture", "--param", "seq_len"), "seq_len"),
        (("--suite", "fixture", "--param", "final_windows=1000000"), "too short"),
        (("--suite", "fixture", "--param", "signing_key=/k"), "signing_key"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    code, text = invoke("run", *arguments)
    assert code != 0
    assert named in text
    assert not (tmp_path / "home").exists()


def test_a_used_directory_is_not_planned_again(
    planned: tuple[RunDir, CampaignPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    _, text = invoke("run", "--suite", "fixture", "--output-dir", str(planned[0].root))
    assert "campaign resume" in text


def test_list_names_campaigns_and_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path))
    assert invoke("list") == (0, "no campaigns yet\n")
    (tmp_path / "runs" / "evidence_campaign" / "empty").mkdir(parents=True)
    assert "unplanned" in invoke("list")[1]


def test_json_of_an_item_is_short(planned: tuple[RunDir, CampaignPlan]) -> None:
    _, plan = planned
    assert len(json.dumps(cell_items(plan, used_lanes(plan)[0])[0])) < 200


@pytest.mark.parametrize(("ratio", "shown"), [(1.00284, "1.0028"), (585.719, "585.7190"), (97626685.04, "9.76e+07")])
def test_ratios_of_ruined_models_are_short(ratio: float, shown: str) -> None:
    from evpack.cli.campaign_view import figure

    assert figure(ratio) == shown

"""Two DAG runs and one run directory; a `plan` that is cleared."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from evpack.airflow import occupancy
from evpack.airflow.client import Client, Endpoint
from evpack.airflow.occupancy import at_work, check_free, check_own, occupy, planned_by
from evpack.airflow.operators import PlanOperator
from evpack.errors import BadInput, StepExit
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.steps.plan import open_campaign
from evpack.steps.state import Attempt

pytestmark = pytest.mark.airflow

PARAMS = {"suite": "fixture", "scenarios": ["quant_clean", "nan_injection"], "num_gpus": 0}


def asks(run_id: str, *unfinished: str) -> Any:
    """The context of a task of a DAG run, in an Airflow where these runs are unfinished."""

    def get_dr_count(dag_id: str, *, run_ids: list[str], states: list[str]) -> int:
        assert dag_id == "campaign" and set(states) == {"queued", "running"}
        return len(set(run_ids) & set(unfinished))

    dag_run = SimpleNamespace(dag_id="campaign", run_id=run_id)
    return {"dag_run": dag_run, "ti": SimpleNamespace(get_dr_count=get_dr_count)}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A planned campaign."""
    return open_campaign(PARAMS, Home(tmp_path / "home"), default_root=tmp_path / "run", environ={})[0]


def test_a_second_dag_run_waits_for_the_end_of_the_first(run: RunDir) -> None:
    occupy(asks("a", "a"), run, planned=True)
    occupy(asks("a", "a"), run)
    with pytest.raises(BadInput, match="DAG run a of campaign is at work"):
        occupy(asks("b", "a", "b"), run)
    assert at_work(run) == {"dag_id": "campaign", "run_id": "a"}
    occupy(asks("b", "b"), run)
    assert at_work(run) == {"dag_id": "campaign", "run_id": "b"}
    with pytest.raises(BadInput, match="DAG run b"):  # a task of the first is cleared meanwhile
        occupy(asks("a", "a", "b"), run)


def test_steps_of_an_ended_run_come_to_their_end_first(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    occupy(asks("a", "a"), run, planned=True)
    monkeypatch.setattr(occupancy, "DYING_S", 0.0)
    attempt = Attempt(run, "fixture.calibrate", 1, "a")
    attempt.begin()  # by this process, which lives
    with pytest.raises(BadInput, match=r"step fixture\.calibrate of .* is running"):
        occupy(asks("b", "b"), run)
    occupy(asks("a", "a"), run)
    attempt.end(StepExit.TRANSIENT, None)
    occupy(asks("b", "b"), run)


def test_who_planned_is_remembered_over_resumes(run: RunDir) -> None:
    occupy(asks("a"), run, planned=True)
    occupy(asks("b"), run)
    assert planned_by(asks("a"), run) and not planned_by(asks("b"), run)


def test_a_campaign_of_another_run_is_taken_up_only_when_it_is_named(run: RunDir) -> None:
    check_own(asks("b"), run, named=False)  # nobody's: planned by hand
    occupy(asks("a.1"), run, planned=True)
    check_own(asks("a.1"), run, named=False)
    check_own(asks("b"), run, named=True)
    with pytest.raises(BadInput, match=r"campaign of DAG run a\.1"):  # its run id gives the same directory
        check_own(asks("a:1"), run, named=False)
    occupy(asks("b"), run)
    check_own(asks("a.1"), run, named=False)  # cleared, after another one resumed it


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    """Plan as a DAG run that may be unfinished; keyword arguments are params."""
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(PlanOperator, "dag_id", "campaign")
    home = Home.locate().create()
    write_json(home.pools, {"cpu": 2, "gpu": 0})

    def work(run_id: str, **params: Any) -> RunDir:
        context = {**asks(run_id, "a.1", "a:1"), "params": {**PARAMS, **params}}
        return PlanOperator(task_id="plan")._plan(context, home)[0]

    return work


def test_lists_are_held_against_the_airflow_that_runs(
    plans: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "1")
    with pytest.raises(BadInput, match="has 2 cells, more than the 1 that one list may have") as caught:
        plans("a.1")
    assert "set [core] max_map_length to 20000" in caught.value.mend
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    assert plans("a.1").plan.is_file()  # when it was mended


def test_of_two_runs_that_plan_at_once_one_gets_the_directory(plans: Callable[..., RunDir]) -> None:
    ends: list[object] = []

    def plan(run_id: str) -> None:
        try:
            ends.append(load_plan(plans(run_id)).digest())
        except BadInput as error:
            ends.append(error)

    both = [threading.Thread(target=plan, args=(run_id,)) for run_id in ("a.1", "a:1")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    (refused,) = (end for end in ends if isinstance(end, BadInput))
    assert "holds the campaign of DAG run a" in refused.what and len(ends) == 2


def test_a_run_that_was_deleted_and_starts_again_plans_again(plans: Callable[..., RunDir]) -> None:
    run = plans("b")
    first = load_plan(run).digest()
    assert load_plan(plans("b")).digest() == first and not run.archive.exists()
    assert load_plan(plans("b", clean_edit_runs=2)).digest() != first
    (aside,) = run.archive.glob("campaign-*")
    assert load_plan(RunDir(aside)).digest() == first


def test_a_run_without_a_name_of_its_own_fails_in_plan(
    play: Any, deployment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    play(run.root, suite_mode="calibrate-only")
    plan = run.plan.read_bytes()
    monkeypatch.setenv("OUTPUT_DIR", str(run.root))
    state, tasks = play(run.root, output_dir=None)
    assert state == "failed" and tasks["plan"] == {"failed": 1}
    assert run.plan.read_bytes() == plan


@pytest.mark.parametrize("name", ["resume", "output_dir"])
def test_a_relative_place_is_nobodys_in_a_worker(play: Any, tmp_path: Path, name: str) -> None:
    state, tasks = play(tmp_path / "run", **{"output_dir": None, name: "runs/mine"})
    assert state == "failed" and tasks["plan"] == {"failed": 1}
    assert not Path("runs/mine").exists()


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"at_work": 1}', '{"at_work": {"dag_id": "x"}}'])
def test_a_damaged_note_is_no_obstacle(run: RunDir, text: str) -> None:
    run.dag_run.write_text(text)
    assert at_work(run) is None
    occupy(asks("b"), run)
    assert at_work(run) == {"dag_id": "campaign", "run_id": "b"} and not planned_by(asks("b"), run)


@pytest.mark.parametrize(("state", "refused"), [("running", True), ("queued", True), ("failed", False), (None, False)])
def test_the_command_asks_before_it_starts_a_run(run: RunDir, state: str | None, refused: bool) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/v2/dags/campaign/dagRuns/a"
        return httpx.Response(404 if state is None else 200, json={"state": state})

    with Client(Endpoint("http://a", "admin", "p"), httpx.MockTransport(handler)) as client:
        check_free(client, run)  # nobody's yet
        occupy(asks("a", "a"), run, planned=True)
        if not refused:
            check_free(client, run)
            return
        with pytest.raises(BadInput, match="DAG run a of campaign is at work"):
            check_free(client, run)


def test_a_run_directory_knows_its_dag_run(play: Any, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    play(run.root, suite_mode="calibrate-only")
    first = read_json(run.dag_run)
    assert first["at_work"] == first["planned_by"] and first["at_work"]["dag_id"] == "evidence_campaign"
    _, tasks = play(run.root, resume=str(run.root), output_dir=None, suite=None, scenarios=None)
    assert tasks["plan"] == {"success": 1}
    second = read_json(run.dag_run)
    assert second["planned_by"] == first["planned_by"] != second["at_work"]


def test_without_pools_nothing_is_planned(play: Any, deployment: Any, tmp_path: Path) -> None:
    pools = deployment.home.pools.read_bytes()
    deployment.home.pools.unlink()
    try:
        state, tasks = play(tmp_path / "run")
    finally:
        deployment.home.pools.write_bytes(pools)
    assert state == "failed" and tasks["plan"] == {"failed": 1}
    assert not (tmp_path / "run").exists()


def again(run: RunDir, home: Home, **params: Any) -> None:
    open_campaign({**PARAMS, **params}, home, default_root=run.root, environ={}, again=True)


def test_planning_the_same_again_keeps_everything(run: RunDir, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    again(run, Home(tmp_path / "home"))
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before
    assert not run.archive.exists()


def test_planning_otherwise_sets_the_old_campaign_aside(run: RunDir, tmp_path: Path) -> None:
    old, home = load_plan(run), Home(tmp_path / "home")
    (run.archive / "earlier").mkdir(parents=True)
    run.presets.mkdir()
    (run.presets / "some").write_text("preset")
    again(run, home, clean_edit_runs=2)
    new = load_plan(run)
    assert new.digest() != old.digest()
    assert not run.presets.exists()
    (aside,) = run.archive.glob("campaign-*")
    assert load_plan(RunDir(aside)).digest() == old.digest()
    assert (aside / "presets" / "some").read_text() == "preset"
    assert (run.archive / "earlier").is_dir()
    again(run, home, clean_edit_runs=3)
    assert len(list(run.archive.glob("campaign-*"))) == 2


def test_other_code_or_other_pins_count_as_otherwise(run: RunDir, tmp_path: Path) -> None:
    write_json(run.source_repo, {**read_json(run.source_repo), "commit": "0" * 40})
    again(run, Home(tmp_path / "home"))
    assert len(list(run.archive.glob("campaign-*"))) == 1
    plan = json.loads(run.plan.read_text())
    plan["models"][0]["source"]["revision"] = "1" * 40
    run.plan.write_text(json.dumps(plan))
    again(run, Home(tmp_path / "home"))
    assert len(list(run.archive.glob("campaign-*"))) == 2


def test_nothing_is_set_aside_under_a_running_step_or_by_a_refused_plan(run: RunDir, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    Attempt(run, "fixture.calibrate", 1, "a").begin()
    with pytest.raises(BadInput, match=r"step fixture\.calibrate"):
        again(run, home, clean_edit_runs=2)
    with pytest.raises(BadInput, match="nowhere"):
        again(run, home, models=[str(tmp_path / "nowhere")])
    assert not run.archive.exists() and run.plan.is_file()

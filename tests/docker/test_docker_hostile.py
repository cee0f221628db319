"""What a hostile container may leave behind leads no mount, no digest and no reader out of the step's own places."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import BadInput, EvidenceError, IntegrityError, StepExit, Transient
from evpack.files import MAX_JSON_BYTES, write_json
from evpack.home import Home
from evpack.plan.health import Health, remember
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.runtime import docker_engine, docker_step
from evpack.runtime.docker_engine import Ended, RunningContainer, reap, remove
from evpack.runtime.docker_step import ContainerWork, FailedElsewhere, _checked, _result
from evpack.runtime.leases import quarantine
from evpack.runtime.threads import frozen_settings
from evpack.steps import remote
from evpack.steps.base import Leased, StepContext
from evpack.steps.remote import RESULT_FILE, RESULT_SCHEMA, Result
from evpack.steps.runner import run_step
from evpack.steps.state import Attempt, read_attempts
from tests.docker.conftest import Plan
from tests.docker.test_docker_spec import LIMITS, moved, spec_of

SETUP, CALIBRATE, CREATE = "fixture.setup_baseline", "fixture.calibrate", "fixture.quant_clean.create"
EVALUATE = "fixture.quant_clean.evaluate"


def context(run: RunDir, home: Home, step: str) -> StepContext:
    plan = load_plan(run)
    return StepContext(run, plan, frozen_settings(run), plan.step(step), home)


def published(run: RunDir, path: Path) -> Result:
    return Result((path.relative_to(run.root).as_posix(),))


# --- mounts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("link", "step"),
    [
        ("fixture", SETUP),
        ("fixture/reports", CALIBRATE),
        ("fixture/reports/calibration", CALIBRATE),
        ("fixture/models/baseline", CREATE),
        ("archive", EVALUATE),
    ],
)
def test_a_planted_link_leads_no_mount_out_of_the_run_directory(plan: Plan, home: Home, link: str, step: str) -> None:
    run, target = plan(), home.root / "target"
    target.mkdir()
    place = run.root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    with pytest.raises(IntegrityError, match=f"{place}, where step"):
        spec_of(run, home, step)
    assert list(target.iterdir()) == []


def test_a_baseline_s_links_open_no_directory(plan: Plan, home: Home) -> None:
    run, baseline = plan(), plan().model("fixture").baseline
    baseline.mkdir(parents=True)
    home.keys.mkdir()
    (home.keys / "signing.pem").touch()
    (baseline / "config.json").symlink_to(home.keys / "signing.pem")
    for step in (SETUP, CALIBRATE, CREATE, EVALUATE):
        assert home.keys not in {mount.path for mount in spec_of(run, home, step).mounts}


@pytest.mark.parametrize("place", ["", "home", "home/keys", "home/airflow"])
def test_a_model_around_or_among_the_secrets_is_refused(plan: Plan, home: Home, tmp_path: Path, place: str) -> None:
    home.keys.mkdir()
    home.airflow.mkdir()
    run = moved(plan(), tmp_path / place)
    with pytest.raises(BadInput, match="would see"):
        spec_of(run, home, CALIBRATE)


def test_the_token_beside_the_hub_cache_is_not_mounted(plan: Plan, home: Home) -> None:
    (home.hf / "hub").mkdir(parents=True)
    (home.hf / "token").touch()
    places = {mount.path for mount in spec_of(plan(), home, SETUP).mounts}
    assert home.hf / "hub" in places and not any((home.hf / "token").is_relative_to(place) for place in places)


def test_to_look_for_secrets_makes_none(plan: Plan, home: Home) -> None:
    spec_of(plan(), home, CALIBRATE)
    assert not home.keys.exists()


def test_a_text_that_is_the_signing_key_is_refused(plan: Plan, home: Home) -> None:
    home.keys.mkdir()
    key = home.keys / "signing.pem"
    key.touch()
    with pytest.raises(BadInput, match="would see"):
        spec_of(plan(), home, SETUP, [key])


# --- what was published ----------------------------------------------------------------------------------------------
@pytest.fixture
def report(plan: Plan) -> tuple[RunDir, Path]:
    run = plan()
    directory = run.model("fixture").report("quant_clean", "clean", 1)
    directory.mkdir(parents=True)
    return run, directory


def test_a_directory_that_is_a_link_publishes_nothing(report: tuple[RunDir, Path], home: Home, tmp_path: Path) -> None:
    run, directory = report
    (tmp_path / "passwd").touch()
    (directory / "inner").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="behind a link"):
        _checked(context(run, home, EVALUATE), published(run, directory / "inner" / "passwd"))


def test_what_is_no_file_is_refused_before_anybody_reads_it(report: tuple[RunDir, Path], home: Home) -> None:
    run, directory = report
    os.mkfifo(directory / "records.json")
    for path in (directory, directory / "records.json"):
        with pytest.raises(IntegrityError, match="no file"):
            _checked(context(run, home, EVALUATE), published(run, path))


def test_a_baseline_links_to_its_source_and_nowhere_else(plan: Plan, home: Home) -> None:
    run = plan()
    ctx, baseline = context(run, home, SETUP), run.model("fixture").baseline
    baseline.mkdir(parents=True)
    source = Path(str(ctx.plan.model("fixture").source.path))
    (baseline / "config.json").symlink_to((source / "config.json").resolve())
    assert _checked(ctx, published(run, baseline)) == [baseline]
    run.model("fixture").profile.symlink_to((source / "config.json").resolve())
    with pytest.raises(IntegrityError, match="link"):
        _checked(ctx, published(run, run.model("fixture").profile))
    (baseline / "tokenizer.json").symlink_to(run.settings)
    with pytest.raises(IntegrityError, match="published a link"):
        _checked(ctx, published(run, baseline))


# --- the result ------------------------------------------------------------------------------------------------------
def test_what_is_no_file_is_no_result(tmp_path: Path) -> None:
    outbox, file = tmp_path / "outbox", tmp_path / "outbox" / RESULT_FILE
    outbox.mkdir()
    assert _result(outbox, "s") is None
    os.mkfifo(file)
    assert _result(outbox, "s") is None  # and nobody waits for its end
    file.unlink()
    file.symlink_to(write(tmp_path / "other.json"))
    assert _result(outbox, "s") is None
    (tmp_path / "link").symlink_to(outbox)
    file.unlink()
    write(file)
    assert _result(outbox, "s") is not None and _result(tmp_path / "link", "s") is None


def write(path: Path, **changed: Any) -> Path:
    good = {"schema": "evpack_step_result_v1", "step": "s", "published": [], "error": None, "leased": None}
    write_json(path, {**good, "peak_rss_bytes": 1, **changed})
    return path


def test_a_huge_result_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / RESULT_FILE).open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(EvidenceError, match=f"limit of {MAX_JSON_BYTES}"):
        _result(tmp_path, "s")


@pytest.mark.parametrize(
    "leased",
    [
        {"devices": "GPU-0", "simulated": False, "waited_s": 0},
        {"devices": ["<script>"], "simulated": False, "waited_s": 0},
        {"devices": [1], "simulated": False, "waited_s": 0},
        {"devices": ["GPU-0"], "simulated": "no", "waited_s": 0},
        {"devices": ["GPU-0"], "simulated": False, "waited_s": "long"},
        {"devices": ["GPU-0"], "simulated": False, "waited_s": -1},
        {"devices": ["GPU-0"], "simulated": False, "waited_s": True},
    ],
)
def test_a_lease_that_is_none_is_no_result(tmp_path: Path, leased: Any) -> None:
    write(tmp_path / RESULT_FILE, leased=leased)
    with pytest.raises(EvidenceError):
        Result.read(tmp_path / RESULT_FILE, "s")


def test_an_error_is_kept_as_far_as_a_person_reads(tmp_path: Path) -> None:
    write(tmp_path / RESULT_FILE, error="x" * 10**6, leased={"devices": ["GPU-0"], "simulated": True, "waited_s": 1})
    result = Result.read(tmp_path / RESULT_FILE, "s")
    assert result.error is not None and len(result.error) < 10**4
    assert result.leased is not None and result.leased.devices == ("GPU-0",)


# --- output ----------------------------------------------------------------------------------------------------------
def test_a_line_without_an_end_comes_in_pieces() -> None:
    lines = list(docker_engine._lines(b"x" * 50_000 for _ in range(10)))
    assert sum(map(len, lines)) == 500_000 and max(map(len, lines)) <= 1 << 16
    assert list(docker_engine._lines([b"a\r\nb", b"c\n", b"d"])) == ["a", "bc", "d"]


def test_a_flood_of_output_ends_in_the_log_and_not_in_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "MAX_OUTPUT", 25)
    source = (str(number) * 9 for number in range(9))
    lines = list(docker_engine._bounded(source))
    assert lines[:2] == ["0" * 9, "1" * 9] and "left out" in lines[2] and len(lines) == 3
    assert next(source, None) is None


# --- an engine that fails --------------------------------------------------------------------------------------------
class Engine:
    """An engine with one container of a dead supervisor, which cannot be removed."""

    def __init__(self, home: Home, *, runs: bool = False, gone: bool = False) -> None:
        self.home, self.runs, self.gone = home, runs, gone

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return [{"Id": "c" * 64, "Labels": {"evpack.home": str(self.home.root), "evpack.step": "s"}}]

    def remove_container(self, *_: Any, **__: Any) -> None:
        from docker.errors import APIError, NotFound

        raise NotFound("gone") if self.gone else APIError("device or resource busy")

    def wait(self, *_: Any, **__: Any) -> dict[str, int]:
        from docker.errors import NotFound
        from requests.exceptions import ReadTimeout

        if self.gone:
            raise NotFound("gone")
        if self.runs:
            raise ReadTimeout
        return {"StatusCode": 0}


def test_only_a_container_that_runs_on_is_in_the_way(home: Home) -> None:
    for engine in (Engine(home), Engine(home, gone=True)):
        remove(engine, "c")
        assert len(reap(engine, home)) == 1
    with pytest.raises(Transient):
        remove(Engine(home, runs=True), "c")


def test_an_engine_that_goes_away_is_a_transient_failure(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from requests.exceptions import ConnectionError as Lost

    def lost(**_: Any) -> Iterator[Any]:
        raise Lost("refused")

    engine = Engine(home)
    monkeypatch.setattr(engine, "containers", lost)
    with pytest.raises(Transient, match="refused"):
        reap(engine, home)


def test_a_task_that_is_stopped_early_starts_no_container(
    plan: Plan, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan()
    work = ContainerWork(lambda: (Engine(home), LIMITS), {})  # type: ignore[arg-type,return-value]

    def started(*_: Any) -> Ended:
        raise AssertionError("a container was started")

    monkeypatch.setattr(RunningContainer, "run", started)
    monkeypatch.setattr(docker_step, "_make_way", lambda *_: work.stop())  # cleared while it looks for earlier ones
    assert run_step(run.root, SETUP, work=work) is StepExit.TRANSIENT
    with pytest.raises(FailedElsewhere, match="stopped"):
        work(context(run, home, SETUP), None)  # type: ignore[arg-type]


def test_what_a_container_does_to_devices_is_told_and_counted_outside(
    plan: Plan, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step finds one device broken, holds another, and crashes; a third was quarantined before."""
    run = plan(worker_max_failures=1)
    quarantine(home, "GPU-2", "long ago", step=CALIBRATE)
    home.notifications.unlink()
    work = ContainerWork(lambda: (Engine(home), LIMITS), {})  # type: ignore[arg-type,return-value]

    def crashes(container: Any, _: Any) -> Ended:
        command = container._spec.command
        remember(home, "GPU-1", Health(0, "Xid 79", "now", CALIBRATE))
        remember(home, "GPU-3", Health(0, "of another step", "now", EVALUATE))
        held = {"devices": ["GPU-0"], "simulated": True, "waited_s": 0}
        value = {"schema": RESULT_SCHEMA, "step": CALIBRATE, "published": [], "error": None, "leased": held}
        write_json(Path(command[command.index("--outbox") + 1]) / RESULT_FILE, value | {"peak_rss_bytes": 1})
        return Ended(139, memory_killed=False)

    monkeypatch.setattr(docker_step, "_make_way", lambda *_: None)
    monkeypatch.setattr(RunningContainer, "run", crashes)
    record = Attempt(run, CALIBRATE, 1, None)
    with pytest.raises(FailedElsewhere, match="SIGSEGV") as caught:
        work(context(run, home, CALIBRATE), record)
    assert caught.value.exit_code == StepExit.TRANSIENT
    assert record.leased is not None and record.leased.devices == ("GPU-0",)
    told = [json.loads(line)["text"] for line in home.notifications.read_text().splitlines()]
    assert told[0] == "GPU-1: Xid 79" and told[1].startswith("GPU-0: 1 failures in a row") and len(told) == 2


def test_what_is_held_stands_in_the_result_before_any_work(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Result] = []

    def work(_: Any, hold: Any, *__: Any, **___: Any) -> list[Path]:
        hold(Leased(("GPU-0",), True))
        seen.append(Result.read(tmp_path / RESULT_FILE, CALIBRATE))
        return []

    monkeypatch.setattr(remote, "need_same_code", lambda *_: None)
    monkeypatch.setattr(remote, "work_here", work)
    monkeypatch.setattr(remote, "attempted", lambda work, *_, **__: (StepExit.PERMANENT, work() or "why"))
    remote.work_alone(plan().root, CALIBRATE, attempt=1, batch=None, outbox=tmp_path, lease=None)
    last = Result.read(tmp_path / RESULT_FILE, CALIBRATE)
    assert [result.leased and result.leased.devices for result in (*seen, last)] == [("GPU-0",)] * 2
    assert [result.error for result in (*seen, last)] == [None, "why"]


def test_neither_a_download_nor_an_engine_holds_a_step_up_for_ever(
    plan: Plan, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: Any) -> Any:
        time.sleep(600)  # ended by the limit

    run = plan(task_timeouts={"SETUP_BASELINE": 1})
    work = ContainerWork(lambda: (Engine(home), LIMITS), {})  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(docker_step, "_make_way", lambda *_: None)
    monkeypatch.setattr(docker_step, "HANG_S", 0)
    monkeypatch.setattr(RunningContainer, "run", hangs)
    assert run_step(run.root, SETUP, work=work) is StepExit.TRANSIENT
    monkeypatch.setattr(docker_step, "fetch", hangs)
    assert run_step(run.root, SETUP, work=work) is StepExit.TRANSIENT
    for record in read_attempts(run, SETUP):
        assert record["error"] == "Timeout: task exceeded its limit of 1 s"

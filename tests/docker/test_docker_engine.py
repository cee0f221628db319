"""Steps in real containers: what they can reach, how they end, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from evpack.errors import BadInput, StepExit
from evpack.files import read_json
from evpack.home import Home
from evpack.plan.model import load_plan
from evpack.plan.nvml import SIMULATED_ENV
from evpack.rundir import RunDir
from evpack.runtime.docker_engine import ours, reap
from evpack.runtime.docker_probe import probe
from evpack.runtime.docker_spec import ContainerLimits
from evpack.runtime.docker_step import ContainerWork
from evpack.runtime.gpu import Demand
from evpack.runtime.leases import claim, holder
from evpack.runtime.threads import frozen_settings
from evpack.steps.runner import run_step
from evpack.steps.state import read_attempts, read_marker
from tests.docker import sleeper
from tests.docker.conftest import IMAGE, Plan, Run
from tests.waiting import until

pytestmark = pytest.mark.docker

SETUP, CALIBRATE, PRESET = "fixture.setup_baseline", "fixture.calibrate", "fixture.derive_preset"
CREATE, EVALUATE = "fixture.quant_clean.create", "fixture.quant_clean.evaluate"


def last_error(run: RunDir, step: str) -> str:
    return str(read_attempts(run, step)[-1]["error"])


def test_losses_in_a_container_are_those_of_a_process(
    plan: Plan, in_container: Run, deployment: Home, engine: Any, tmp_path: Path
) -> None:
    runs = {name: plan(output_dir=str(tmp_path / name)) for name in ("container", "process")}
    for step in (SETUP, CALIBRATE, PRESET, CREATE, EVALUATE):
        assert in_container(runs["container"], step) is StepExit.OK
        assert run_step(runs["process"].root, step) is StepExit.OK
        outputs = {name: read_marker(run, step).outputs for name, run in runs.items()}  # type: ignore[union-attr]
        assert outputs["container"].keys() == outputs["process"].keys()
    records = "fixture/reports/quant_clean/run_1/records.json"
    assert (runs["container"].root / records).read_bytes() == (runs["process"].root / records).read_bytes()
    manifest = read_json(runs["container"].root / records.replace("records", "runtime.manifest"))
    assert manifest["execution_mode"] == "container" and manifest["runtime"]["image_digest"] == IMAGE
    assert list(runs["container"].archive.iterdir()) == [] and ours(engine, deployment) == []
    assert read_attempts(runs["container"], EVALUATE)[-1]["peak_rss_bytes"] > 10**8


PROBE = """
import json, os, pathlib, socket, sys
root, home = map(pathlib.Path, sys.argv[-2:])
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
found = {"uid": os.getuid(), "capabilities": int(status["CapEff"], 16), "privileges_fixed": int(status["NoNewPrivs"])}
found["network"] = [name for _, name in socket.if_nameindex()]
found["home"] = sorted(path.name for path in home.iterdir())
found["pid_1"] = pathlib.Path("/proc/1/comm").read_text().strip()
for place in sys.argv[1:-2] + ["/", "/opt/own", "/tmp"]:
    try:
        (pathlib.Path(place) / "written").write_text("x")
        found.setdefault("written", []).append(place)
    except OSError:
        pass
print("found", json.dumps(found))
sys.exit(10)
"""


def test_a_step_reaches_only_what_it_needs(
    plan: Plan, in_container: Run, deployment: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan()
    for step in (SETUP, CALIBRATE, PRESET, CREATE):
        assert in_container(run, step) is StepExit.OK
    (deployment.hf / "hub").mkdir(parents=True)
    for place in (deployment.keys, deployment.airflow, deployment.leases):
        place.mkdir()
    model = run.model("fixture")
    reports = model.root / "reports" / "quant_clean"
    places = [
        *(run.root, run.root / "state", run.root / "state" / "steps", run.presets, run.archive, run.archive / EVALUATE),
        *(model.root, model.baseline, model.baseline.parent, model.calibration, model.windows, reports),
        *(model.root / "reports", deployment.hf / "hub"),
    ]
    monkeypatch.setattr(
        "evpack.runtime.docker_step._command",
        lambda ctx, outbox: [*map(str, places), str(run.root), str(deployment.root)],
    )
    sleeper.instead(monkeypatch, PROBE)
    assert in_container(run, EVALUATE) is StepExit.PERMANENT
    line = next(line for line in run.task_log(EVALUATE).read_text().splitlines() if "found {" in line)
    found = json.loads(line.partition("found ")[2])
    assert found.pop("written") == [str(run.archive / EVALUATE), str(reports), "/tmp"]  # noqa: S108
    assert found == {
        "uid": run.root.stat().st_uid,
        "capabilities": 0,
        "privileges_fixed": 1,
        "network": ["lo"],
        "home": ["hf"],
        "pid_1": "tini",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to somebody else")
def test_what_a_container_makes_belongs_to_the_owner_of_the_run_directory(plan: Plan, in_container: Run) -> None:
    run = plan()
    for path in (run.root, *run.root.rglob("*")):
        os.chown(path, 4711, 4712)
    assert in_container(run, SETUP) is StepExit.OK
    model = run.model("fixture").root
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (model, *model.rglob("*"))} == {(4711, 4712)}


NETWORK = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)"


def test_a_step_that_tries_the_network_fails(
    plan: Plan, in_container: Run, deployment: Home, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan()
    sleeper.instead(monkeypatch, NETWORK)
    assert in_container(run, SETUP) is not StepExit.OK
    assert "Network is unreachable" in run.task_log(SETUP).read_text()
    assert read_marker(run, SETUP) is None and ours(engine, deployment) == []


def test_more_memory_than_the_limit_is_out_of_memory(
    plan: Plan, in_container: Run, deployment: Home, engine: Any
) -> None:
    run = plan()
    assert in_container(run, SETUP) is StepExit.OK
    assert in_container(run, CALIBRATE, memory_bytes=120 * 10**6) is StepExit.OUT_OF_HOST_MEMORY
    assert "SIGKILL" in last_error(run, CALIBRATE) and ours(engine, deployment) == []
    assert in_container(run, CALIBRATE) is StepExit.OK
    records = run.model("fixture").calibration.glob("run_*/records.json")
    batches = {read_json(path)["compute"]["batch"] for path in records}
    assert batches == {load_plan(run).model("fixture").batch // 2}


def test_a_step_beyond_its_time_limit_leaves_no_container(
    plan: Plan, in_container: Run, deployment: Home, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan({"TASK_TIMEOUT_SETUP_BASELINE": "1"})
    sleeper.instead(monkeypatch, sleeper.SLEEP)
    assert in_container(run, SETUP) is StepExit.TRANSIENT
    assert last_error(run, SETUP).startswith("Timeout") and ours(engine, deployment) == []


def test_a_step_that_is_stopped_cleans_up_and_is_gone(
    plan: Plan, engine: Any, limits: ContainerLimits, deployment: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, work = plan(), ContainerWork(lambda: (engine, limits), {})
    sleeper.instead(monkeypatch, sleeper.SLEEP)
    ends: list[StepExit] = []
    task = threading.Thread(target=lambda: ends.append(run_step(run.root, SETUP, work=work)))
    task.start()
    sleeper.until_asleep(run, SETUP)
    work.stop()
    task.join()
    assert ends == [StepExit.TRANSIENT] and ours(engine, deployment) == []


def test_a_container_outlives_its_killed_task_with_its_devices_until_it_is_reaped(
    plan: Plan, in_container: Run, deployment: Home, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpus.json"
    file.write_text(json.dumps({"devices": [{"uuid": "GPU-0", "memory_gb": 80}]}))
    environ = {SIMULATED_ENV: str(file)}
    monkeypatch.setenv(SIMULATED_ENV, str(file))
    run = plan(environ, num_gpus=1, gpu_cache_ttl=0)
    assert in_container(run, SETUP) is StepExit.OK
    task = subprocess.Popen(
        [sys.executable, "-m", "tests.docker.sleeper", str(run.root), CALIBRATE, IMAGE],
        env={**os.environ, "EVPACK_HOME": str(deployment.root), **environ},
        stdout=subprocess.DEVNULL,
    )
    sleeper.until_asleep(run, CALIBRATE, "GPU-0")
    assert reap(engine, deployment) == []  # its task looks after it
    task.send_signal(signal.SIGKILL)
    task.wait()
    (container,) = ours(engine, deployment, step=CALIBRATE)
    assert container["State"] == "running"
    settings, model = frozen_settings(run), load_plan(run).model("fixture")
    with ExitStack() as locks:
        devices, refused = claim(deployment, settings, Demand.of(model, settings, 1), locks, "another step")
    assert devices == [] and refused == ["GPU-0: leased"]
    (line,) = reap(engine, deployment)
    assert CALIBRATE in line and ours(engine, deployment) == []
    until(lambda: holder(deployment, "GPU-0") is None)
    assert in_container(run, CALIBRATE) is StepExit.OK
    (done,) = (record for record in read_attempts(run, CALIBRATE) if record["class"] == "ok")
    assert done["leased"]["devices"] == ["GPU-0"] and done["leased"]["simulated"] is True


def test_a_new_try_ends_the_container_of_the_one_before(
    plan: Plan, in_container: Run, deployment: Home, engine: Any
) -> None:
    run = plan()
    task = subprocess.Popen(
        [sys.executable, "-m", "tests.docker.sleeper", str(run.root), SETUP, IMAGE],
        env={**os.environ, "EVPACK_HOME": str(deployment.root)},
        stdout=subprocess.DEVNULL,
    )
    sleeper.until_asleep(run, SETUP)
    assert in_container(run, SETUP) is StepExit.OK
    assert task.wait() == 0  # it wrote down how its container ended
    assert ours(engine, deployment) == []
    assert sorted(record["class"] for record in read_attempts(run, SETUP)) == ["ok", "transient"]


def test_another_deployment_s_containers_are_left_alone(
    engine: Any, limits: ContainerLimits, deployment: Home, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, work = plan(), ContainerWork(lambda: (engine, limits), {})
    sleeper.instead(monkeypatch, sleeper.SLEEP)
    task = threading.Thread(target=run_step, args=(run.root, SETUP), kwargs={"work": work})
    task.start()
    sleeper.until_asleep(run, SETUP)
    assert ours(engine, Home(tmp_path / "other")) == [] == reap(engine, Home(tmp_path / "other"))
    assert len(ours(engine, deployment)) == 1
    work.stop()
    task.join()


def test_an_image_that_is_not_there_is_bad_input(plan: Plan, in_container: Run, deployment: Home, engine: Any) -> None:
    run = plan()
    assert in_container(run, SETUP, image=f"sha256:{'0' * 64}") is StepExit.BAD_INPUT
    assert "the engine has no image" in last_error(run, SETUP) and ours(engine, deployment) == []


def test_devices_without_their_runtime_are_bad_input(
    plan: Plan, in_container: Run, deployment: Home, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine gives GPUs to containers")
    run = plan()
    monkeypatch.setattr("evpack.runtime.docker_spec.devices_of", lambda plan, step: 1)
    assert in_container(run, SETUP) is StepExit.BAD_INPUT
    assert "NVIDIA container toolkit" in last_error(run, SETUP) and ours(engine, deployment) == []


def test_doctor_sends_a_token_through_a_container(engine: Any, limits: ContainerLimits, deployment: Home) -> None:
    assert "reads and writes" in probe(engine, limits, deployment)
    assert list(deployment.root.iterdir()) == [] and ours(engine, deployment) == []


def test_doctor_sees_an_engine_that_has_another_file_system(
    engine: Any, limits: ContainerLimits, deployment: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = deployment.root.parent / "elsewhere"
    elsewhere.mkdir()
    from docker import types

    real = types.Mount
    monkeypatch.setattr(types, "Mount", lambda target, source, **rest: real(target, str(elsewhere), **rest))
    with pytest.raises(BadInput, match="does not see"):
        probe(engine, limits, deployment)

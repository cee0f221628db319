"""What the containers of steps are made of, without an engine."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from evpack.errors import BadInput, EvidenceError, IntegrityError
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.model import CampaignPlan, load_plan
from evpack.rundir import RunDir
from evpack.runtime.docker_spec import ContainerLimits, ContainerSpec, Supervisor, step_container
from evpack.runtime.docker_step import _checked
from evpack.runtime.threads import frozen_settings
from evpack.steps.base import StepContext
from evpack.steps.remote import RESULT_FILE, Result, need_same_code
from tests.docker.conftest import Plan

DIGEST = f"sha256:{'a' * 64}"
LIMITS = ContainerLimits(DIGEST, 10**9, 10**8)
NO_PROCESS = (1 << 22) + 1
"""Beyond all ids that Linux gives."""


def spec_of(run: RunDir, home: Home, step: str, texts: Iterable[Path] = ()) -> ContainerSpec:
    plan = load_plan(run)
    return step_container(
        *(run, plan, plan.step(step), frozen_settings(run), home),
        limits=LIMITS,
        command=["step", str(run.root), step],
        texts=texts,
        threads=2,
        labels={"task_id": "cpu_s.cells.evaluate"},
    )


def writable(spec: ContainerSpec, run: RunDir) -> set[str]:
    return {mount.path.relative_to(run.root).as_posix() for mount in spec.mounts if mount.writable}


@pytest.mark.parametrize(
    ("step", "places"),
    [
        ("fixture.setup_baseline", {"fixture"}),
        ("fixture.calibrate", {"fixture/reports/calibration"}),
        ("fixture.derive_preset", {"fixture/reports/calibration", "presets"}),
        ("fixture.quant_clean.create", {"fixture/models"}),
        ("fixture.quant_clean.evaluate", {"fixture/reports/quant_clean"}),
        ("fixture.nan_injection.evaluate", {"fixture/reports/errors"}),
    ],
)
def test_a_step_writes_where_it_publishes_and_nowhere_else(plan: Plan, home: Home, step: str, places: set[str]) -> None:
    run = plan()
    run.model("fixture").baseline.mkdir(parents=True)
    spec = spec_of(run, home, step)
    assert writable(spec, run) == {*places, f"archive/{step}"}
    assert {mount.path for mount in spec.mounts if mount.path == run.root and not mount.writable} == {run.root}
    read_only = {mount.path for mount in spec.mounts if not mount.writable}
    assert (run.model("fixture").baseline in read_only) == step.endswith("create")
    assert not {home.root, home.keys, home.airflow} & {mount.path for mount in spec.mounts}


def test_only_the_evaluation_that_is_repeated_writes_its_figures(plan: Plan, home: Home) -> None:
    run = plan(repeats=2, scenarios="quant_clean,prune_clean", guards_order="invariants")
    wide = {
        step
        for step in ("quant_clean", "prune_clean")
        if "analysis" in writable(spec_of(run, home, evaluation(step)), run)
    }
    assert len(wide) == 1


def evaluation(scenario: str) -> str:
    return f"fixture.{scenario}.evaluate"


def test_only_a_step_on_devices_gets_leases_and_devices(
    plan: Plan, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpus.json"
    file.write_text('{"devices": [{"uuid": "GPU-0", "memory_gb": 80}]}')
    monkeypatch.setenv("EVPACK_SIMULATED_GPUS", str(file))
    run = plan({"EVPACK_SIMULATED_GPUS": str(file)}, num_gpus=1)
    held = {mount.path: mount.writable for mount in spec_of(run, home, "fixture.calibrate").mounts}
    assert held[home.leases] and not held[file]
    assert home.leases not in {mount.path for mount in spec_of(run, home, "fixture.quant_clean.create").mounts}
    assert spec_of(run, home, "fixture.calibrate").devices is False  # pretended ones are no engine's
    monkeypatch.delenv("EVPACK_SIMULATED_GPUS")
    real = spec_of(run, home, "fixture.calibrate")
    assert real.devices and real.host_config()["device_requests"][0]["Count"] == -1


def test_the_host_is_closed_to_a_container(plan: Plan, home: Home) -> None:
    host = spec_of(plan(), home, "fixture.calibrate").host_config()
    assert host["network_mode"] == "none" and host["read_only"] is True and host["cap_drop"] == ["ALL"]
    assert host["security_opt"] == ["no-new-privileges:true"] and host["pids_limit"] > 0
    assert host["mem_limit"] == host["memswap_limit"] == LIMITS.memory_bytes and host["device_requests"] is None


def test_a_container_gets_places_and_no_secret(plan: Plan, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("PACK_SIGNING_KEY", "/key.pem")
    run = plan()
    spec = spec_of(run, home, "fixture.calibrate")
    assert not {"HF_TOKEN", "PACK_SIGNING_KEY", "PATH"} & set(spec.environment)
    assert spec.environment["EVPACK_HOME"] == str(home.root) and spec.environment["EVPACK_IMAGE"] == DIGEST
    assert spec.environment["HF_HUB_OFFLINE"] == "1" and spec.environment["HOME"] == "/tmp"  # noqa: S108
    owner = run.root.stat()
    assert spec.user == f"{owner.st_uid}:{owner.st_gid}"
    assert spec.labels["evpack.step"] == "fixture.calibrate" and spec.labels["evpack.run_dir"] == str(run.root)


def test_what_the_source_links_to_is_there(plan: Plan, home: Home, tmp_path: Path) -> None:
    run = plan()
    source, disk = tmp_path / "source", tmp_path / "disk"
    source.mkdir()
    disk.mkdir()
    (disk / "model.safetensors").touch()
    (source / "model.safetensors").symlink_to(disk / "model.safetensors")
    (tmp_path / "name").symlink_to(source)
    texts = [tmp_path / "text.txt"]
    texts[0].touch()
    spec = spec_of(moved(run, tmp_path / "name"), home, "fixture.calibrate", texts)
    assert {tmp_path / "name", disk, *texts} <= {mount.path for mount in spec.mounts if not mount.writable}


def moved(run: RunDir, source: Path) -> RunDir:
    """The run directory with its model's source elsewhere."""
    document = read_json(run.plan)
    document["models"][0]["source"]["path"] = str(source)
    write_json(run.plan, document)
    return run


@pytest.mark.parametrize("image", ["", "evpack-worker", "evpack-worker:latest", f"sha256:{'a' * 63}", "x@sha256:1"])
def test_an_image_that_can_move_is_refused(image: str) -> None:
    with pytest.raises(BadInput, match="pins no image"):
        ContainerLimits.of({"EVPACK_WORKER_IMAGE": image})


@pytest.mark.parametrize("image", [DIGEST, f"registry.example/evpack@{DIGEST}"])
def test_a_pinned_image_is_taken(image: str) -> None:
    limits = ContainerLimits.of({"EVPACK_WORKER_IMAGE": image, "EVPACK_CONTAINER_MEMORY_GB": "1.5"})
    assert limits.image == image and limits.memory_bytes == 1_500_000_000


@pytest.mark.parametrize("size", ["", "much", "-1", "0", "nan", "inf", "0.001"])
def test_limits_are_sizes(size: str) -> None:
    environ = {"EVPACK_WORKER_IMAGE": DIGEST, "EVPACK_CONTAINER_SHM_GB": size}
    if size == "":
        assert ContainerLimits.of(environ).shm_bytes > 0
    else:
        with pytest.raises(BadInput, match="EVPACK_CONTAINER_SHM_GB"):
            ContainerLimits.of(environ)


def test_a_supervisor_is_known_by_host_id_and_start() -> None:
    this = Supervisor.this()
    assert Supervisor.parse(str(this)) is not None and not this.is_gone()
    assert replace(this, start=f"{this.start}0").is_gone()  # somebody else got its id
    assert replace(this, pid=NO_PROCESS).is_gone()
    assert not replace(this, host=f"not-{socket.gethostname()}", pid=NO_PROCESS).is_gone()
    assert Supervisor.parse("") is None and Supervisor.parse("host pid 1.0") is None


def test_no_correction_of_the_clock_makes_a_supervisor_look_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    this = Supervisor.this()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)
    assert not this.is_gone() and Supervisor.this() == this


def context(run: RunDir, home: Home, step: str) -> StepContext:
    plan: CampaignPlan = load_plan(run)
    return StepContext(run, plan, frozen_settings(run), plan.step(step), home)


def test_a_step_may_publish_only_its_own(plan: Plan, home: Home) -> None:
    run = plan()
    ctx = context(run, home, "fixture.quant_clean.evaluate")
    report = run.model("fixture").report("quant_clean", "clean", 1)
    report.mkdir(parents=True)
    assert _checked(ctx, Result((report.relative_to(run.root).as_posix(),))) == [report]
    for name in ("state/plan.json", "fixture/reports/quant_clean/../calibration", "/etc/passwd", "presets"):
        with pytest.raises(IntegrityError, match="none of its places"):
            _checked(ctx, Result((name,)))
    (report / "records.json").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError, match="published a link"):
        _checked(ctx, Result((report.relative_to(run.root).as_posix(),)))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"schema": "evpack_step_result_v1", "step": "s"},
        {"schema": "other", "step": "s", "published": [], "error": None, "leased": None, "peak_rss_bytes": 1},
        {"schema": "evpack_step_result_v1", "step": "t", "published": [], "error": None, "leased": None},
        {"schema": "evpack_step_result_v1", "step": "s", "published": 1, "error": None, "leased": None},
        {"schema": "evpack_step_result_v1", "step": "s", "published": [], "error": None, "leased": {}},
    ],
)
def test_a_malformed_result_is_no_result(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / RESULT_FILE, value)
    with pytest.raises(EvidenceError):
        Result.read(tmp_path / RESULT_FILE, "s")


@pytest.mark.parametrize(
    ("image", "planned", "refused"),
    [
        (("a", False), ("a", False), None),
        (("a", False), ("a", True), None),
        (("a", True), ("a", True), None),
        (("a", True), ("a", False), "a{40} with changes, the campaign was planned by a{40}$"),
        (("b", False), ("a", False), "at commit b{40}, the campaign was planned by a{40}$"),
        (None, ("a", False), "does not say of which commit"),
    ],
)
def test_only_the_code_that_planned_computes(
    tmp_path: Path, image: tuple[str, bool] | None, planned: tuple[str, bool], refused: str | None
) -> None:
    def provenance(path: Path, commit: str, dirty: bool) -> None:
        rest = dict.fromkeys(("uri", "branch", "describe", "recorded_at"))
        write_json(path, {**rest, "commit": commit * 40, "dirty": dirty})

    run, baked = RunDir(tmp_path / "run"), tmp_path / "source_repo.json"
    provenance(run.source_repo, *planned)
    if image is not None:
        provenance(baked, *image)
    if refused is None:
        need_same_code(run, baked)
        return
    with pytest.raises(BadInput) as error:
        need_same_code(run, baked)
    assert re.search(refused, error.value.what)

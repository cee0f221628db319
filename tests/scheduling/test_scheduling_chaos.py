"""Campaigns whose processes are killed, whose disk fills, whose steps lack memory: they end with the same verdict."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from evpack.errors import CampaignExit, StepExit
from evpack.files import read_json
from evpack.home import Home
from evpack.plan.model import StepType, load_plan
from evpack.rundir import RunDir
from evpack.runtime.docker_engine import connect, ours
from evpack.runtime.docker_spec import WORKER_IMAGE_ENV
from evpack.runtime.leases import holder
from evpack.steps.state import read_attempts, read_marker
from evpack.steps.variants import spent
from studies.scheduling.stage import ROOT

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

SEED = int(os.environ.get("EVPACK_CHAOS_SEED", "20261123"))
DISTURBANCES = int(os.environ.get("EVPACK_CHAOS_DISTURBANCES", "20"))
IMAGE = os.environ.get(WORKER_IMAGE_ENV, "")
STEP = Path(__file__).with_name("chaos_step.py")
SCENARIOS = "quant_clean,prune_50pct_stress,nan_injection"
PARAMS = {
    "clean_edit_runs": 1,
    "stress_edit_runs": 1,
    "drift_calibration_runs": 1,
    "guards_order": "invariants",
    "max_retries": 20,
    "retry_backoff_base": 0.5,
    "min_free_disk_gb": 0,
}
DISK_BYTES = 400 << 20
PAUSE_S = (1.0, 7.0)
"""Between two disturbances."""
FULL_S = 20.0
"""How long the disk stays full at most, until a step has noticed."""
PATIENCE_S = 60.0
"""How long an order waits for a step that scores."""
MOST_STARTS = 60

DAG_FILE = """# Airflow looks only into files with the words airflow and dag.
import sys

sys.path.insert(0, {folder!r})

import chaos_step

chaos_step.attack()

from evpack.airflow.factory import build_dags

evidence_campaign, evidence_nightly = build_dags()
"""


@dataclass
class Arena:
    """A deployment with two pretended devices, whose run directories lie on a small disk of their own."""

    root: Path
    disk: bool
    """Whether there is that disk (mounting one takes root)."""
    image: str = ""
    """Worker image, where steps run in containers."""
    home: Home = field(init=False)
    environ: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.home = Home(self.root / "home").create()
        project = self.root / "project"
        (project / "dags").mkdir(parents=True)
        (project / "dags" / "evidence_campaign.py").write_text(DAG_FILE.format(folder=str(STEP.parent)))
        (project / "plugins").symlink_to(ROOT / "plugins")
        for name in ("orders", "witness", "violations", "runs"):
            (self.root / name).mkdir()
        gpus = self.root / "gpus.json"
        gpus.write_text(json.dumps({"devices": [{"uuid": f"GPU-{n}", "memory_gb": 80} for n in range(2)]}))
        dropped = ("AIRFLOW", "_AIRFLOW", "PACK_", "EVPACK_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environ = {
            **kept,
            "EVPACK_HOME": str(self.home.root),
            "EVPACK_PROJECT": str(project),
            "EVPACK_SIMULATED_GPUS": str(gpus),
            "EVPACK_CHAOS": str(self.root),
            "OMP_NUM_THREADS": "1",
        }
        if self.image:
            self.environ |= {"EVPACK_RUNTIME": "docker", WORKER_IMAGE_ENV: self.image}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "evpack.cli.main", "campaign", *arguments]
        with (self.root / "campaign.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, start_new_session=True)

    def begin(self, name: str) -> tuple[subprocess.Popen[bytes], RunDir]:
        """Start a campaign of the fixture suite."""
        run = self.root / "runs" / name
        params = [part for key, value in PARAMS.items() for part in ("--param", f"{key}={value}")]
        chosen = ("run", "--suite", "fixture", "--scenarios", SCENARIOS, "--output-dir", str(run), *params)
        return self.start(*chosen), RunDir(run)

    def component(self, name: str) -> int | None:
        """The process of a component of the running Airflow."""
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
            for session in read_json(self.home.airflow / "embedded.json")["sessions"]:
                alive = psutil.Process(session["sid"]).status() != psutil.STATUS_ZOMBIE
                if session["name"] == name and alive:
                    return int(session["sid"])
        return None

    def containers(self) -> dict[str, str]:
        """State of every container of this deployment."""
        return {found["Id"]: found["State"] for found in ours(connect(), self.home)} if self.image else {}

    def lacked_disk(self) -> int:
        """How many tasks ended for lack of disk, by Airflow's logs: with a full disk no attempt record tells it."""
        logs = self.home.airflow.glob("logs/**/*.log")
        return sum(log.read_text(errors="replace").count(f": disk (exit {int(StepExit.DISK)})") for log in logs)

    def steps(self) -> list[int]:
        """Processes of steps that run now, in containers too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(STEP) in process.cmdline() and str(self.root) in " ".join(process.cmdline()):
                    found.append(process.pid)
        return sorted(found)


IN_CONTAINERS = pytest.param(IMAGE, marks=pytest.mark.skipif(not IMAGE, reason="`make chaos` gives engine and image"))


@pytest.fixture(params=["", IN_CONTAINERS], ids=["in_processes", "in_containers"])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    runs = tmp_path / "runs"
    made = Arena(tmp_path, disk=os.geteuid() == 0, image=request.param)
    if made.disk:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(runs)]
        made.disk = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield made
    finally:
        for group in Path("/sys/fs/cgroup/memory").glob("evpack-chaos-*"):
            with contextlib.suppress(OSError):
                group.rmdir()
        if made.disk:
            subprocess.run(["umount", str(runs)], check=False)


class Chaos:
    """Disturbs a running campaign, each time in a way drawn from a seeded generator."""

    def __init__(self, arena: Arena, dice: random.Random) -> None:
        self._arena, self._dice = arena, dice
        self.done: Counter[str] = Counter()
        self._ways: dict[str, Callable[[subprocess.Popen[bytes]], bool]] = {
            "scheduler killed": lambda _: self._kill_component("scheduler"),
            "API server killed": lambda _: self._kill_component("api-server"),
            "campaign command killed": self._kill_command,
            "step killed": self._kill_step,
            "step out of memory": lambda campaign: self._order("oom", campaign),
        }
        if arena.image:
            self._ways["container killed"] = self._kill_container
        if arena.disk:
            self._ways["disk full"] = self._fill_disk
        if arena.image or os.access("/sys/fs/cgroup/memory/cgroup.procs", os.W_OK):
            self._ways["step starved of memory"] = lambda campaign: self._order("starve", campaign)

    def disturb(self, campaign: subprocess.Popen[bytes]) -> None:
        """One disturbance, of the kinds that were rarest so far."""
        rarest = min(self.done[name] for name in self._ways)
        name = self._dice.choice([name for name in sorted(self._ways) if self.done[name] <= rarest + 1])
        if self._ways[name](campaign):
            self.done[name] += 1
            print(f"{time.strftime('%H:%M:%S')} {sum(self.done.values())}: {name}", flush=True)

    def _kill_step(self, _: subprocess.Popen[bytes]) -> bool:
        steps = self._arena.steps()
        return bool(steps) and _killed(self._dice.choice(steps))

    def _kill_container(self, _: subprocess.Popen[bytes]) -> bool:
        from docker.errors import APIError

        running = sorted(name for name, state in self._arena.containers().items() if state == "running")
        if running:
            with contextlib.suppress(APIError):  # it ended by itself meanwhile
                connect().kill(self._dice.choice(running))
                return True
        return False

    def _kill_component(self, name: str) -> bool:
        found = self._arena.component(name)
        return found is not None and _killed(found)

    def _kill_command(self, campaign: subprocess.Popen[bytes]) -> bool:
        return self._arena.component("scheduler") is not None and _killed(campaign.pid)

    def _order(self, name: str, campaign: subprocess.Popen[bytes]) -> bool:
        """Give an order and wait until a step obeyed it, or the campaign went on without."""
        order = self._arena.root / "orders" / name
        order.touch()
        deadline = time.monotonic() + PATIENCE_S
        while order.exists() and campaign.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            order.unlink()
        except FileNotFoundError:
            return True
        return False

    def _fill_disk(self, _: subprocess.Popen[bytes]) -> bool:
        if not self._arena.steps():
            return False
        filler, before = self._arena.root / "runs" / "filler", self._arena.lacked_disk()
        try:
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            deadline = time.monotonic() + FULL_S
            while self._arena.lacked_disk() == before and time.monotonic() < deadline:
                time.sleep(0.2)
        finally:
            filler.unlink(missing_ok=True)
        return self._arena.lacked_disk() > before


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def play(arena: Arena, name: str, chaos: Chaos | None, dice: random.Random) -> RunDir:
    """A campaign to its end, resumed as often as it takes; disturbed until enough was done."""
    campaign, run = arena.begin(name)
    for _ in range(MOST_STARTS):
        while campaign.poll() is None:
            deadline = time.monotonic() + dice.uniform(*PAUSE_S)
            while campaign.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            if chaos is not None and campaign.poll() is None and sum(chaos.done.values()) < DISTURBANCES:
                chaos.disturb(campaign)
        if campaign.returncode == CampaignExit.PASS:
            return run
        log = (arena.root / "campaign.log").read_text()[-3000:]
        assert campaign.returncode in (CampaignExit.INCOMPLETE, -signal.SIGKILL), f"{campaign.returncode}\n{log}"
        if run.plan.is_file():
            campaign = arena.start("resume", str(run.root))
        else:
            campaign, _ = arena.begin(name)
    raise AssertionError(f"no verdict after {MOST_STARTS} starts")


def judged(run: RunDir) -> Any:
    """What a verdict says, without when and of which run directory."""
    verdict = read_json(run.final_verdict)
    return {name: value for name, value in verdict.items() if name not in ("timestamp", "plan_digest", "summary")}


def check_whole(arena: Arena, run: RunDir) -> None:
    """Nothing lost, nothing held, nobody left."""
    for step in load_plan(run).steps:
        marker = read_marker(run, step.id)
        assert marker is not None, step.id
        assert marker.intact(run) or (step.type is StepType.CREATE and spent(run, marker)), step.id
        assert [record for record in read_attempts(run, step.id) if record["class"] == "ok"], step.id
    assert not list((arena.root / "violations").iterdir())
    assert [holder(arena.home, f"GPU-{number}") for number in range(2)] == [None, None]
    assert arena.steps() == []
    assert arena.containers() == {}


def test_the_verdict_survives(arena: Arena) -> None:
    dice = random.Random(SEED)  # noqa: S311 - a seeded sequence of disturbances
    undisturbed = play(arena, "undisturbed", None, dice)
    check_whole(arena, undisturbed)
    chaos, number = Chaos(arena, dice), 0
    while sum(chaos.done.values()) < DISTURBANCES:
        number += 1
        run = play(arena, f"disturbed{number}", chaos, dice)
        check_whole(arena, run)
        assert judged(run) == judged(undisturbed)
    print(f"{sum(chaos.done.values())} disturbances in {number} campaigns: {dict(chaos.done)}")

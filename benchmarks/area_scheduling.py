"""Area scheduling: what Airflow adds to a step, how long planning takes, how near schedules come to the best."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from evpack.catalog.suites import settings_for
from evpack.files import read_json
from evpack.home import Home
from evpack.plan.campaign import plan_campaign
from evpack.rundir import RunDir
from evpack.runtime.choice import DOCKER, PROCESS
from studies.scheduling.__main__ import DEVICE_COUNTS, plan_case, play
from studies.scheduling.durations import Host
from studies.scheduling.shapes import full_models, pretend_hub
from studies.scheduling.stage import ROOT, SMALL_TEXT, fixture_models, stage

AT_ONCE = 2
TASK_MODELS = 2
PLANNED_MODELS = 64
NO_ENGINE = 77
"""How tools/with_docker.sh ends where no engine can be had."""


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        root = Path(folder)
        params = {**SMALL_TEXT, **fixture_models(root, PLANNED_MODELS)}
        return [
            *_overhead_rows(root, {**params, "models": params["models"][:TASK_MODELS]}),
            *_container_rows(root),
            _planning_row(root, params),
            *_makespan_rows(root),
        ]


def _overhead_rows(root: Path, params: dict[str, Any]) -> list[Row]:
    """Wall seconds per task whose step does nothing, two at a time on a real scheduler."""
    rows = []
    for inline, name in ((True, "Airflow task around a step"), (False, "the same with the step's own process")):
        place = root / f"inline_{inline}"
        place.mkdir()
        with stage(place, [], devices=0, cpu_slots=AT_ONCE, scale=0, inline=inline) as at:
            at.start("bench", **params)
            at.wait("bench")
            tasks = [task for task in at.steps("bench") if task["queued_when"]]
        bad = [task["task_id"] for task in tasks if task["state"] != "success"]
        assert not bad, f"tasks failed: {bad[:3]}"
        begin = min(datetime.fromisoformat(task["queued_when"]) for task in tasks)
        end = max(datetime.fromisoformat(task["end_date"]) for task in tasks)
        value = (end - begin).total_seconds() / len(tasks)
        rows.append(Row(name, value, "s", 1.5, "at most", note=f"{len(tasks)} tasks, {AT_ONCE} at a time"))
    return rows


def _container_rows(root: Path) -> list[Row]:
    """What a container adds to a task that runs a step; no row, but a reason, where no engine can be had."""
    file = root / "containers.json"
    command = ["tools/with_docker.sh", sys.executable, "-m", "benchmarks.containers", str(file)]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode == NO_ENGINE:
        print(f"  no row of containers: {done.stdout.strip().splitlines()[-1]}")
        return []
    done.check_returncode()
    found = read_json(file)
    assert found[PROCESS].keys() == found[DOCKER].keys(), "other steps in containers"
    added = [found[DOCKER][task] - seconds for task, seconds in found[PROCESS].items()]
    note = (
        f"median of {len(added)} steps, {AT_ONCE} at a time, of {min(added):.1f} to {max(added):.1f}; "
        f"a step in a process takes {statistics.median(found[PROCESS].values()):.1f} s"
    )
    return [Row("a container adds to a step", statistics.median(added), "s", 3.0, "at most", note=note)]


def _planning_row(root: Path, params: dict[str, Any]) -> Row:
    """All of `plan` but the text: sources read and hashed, lanes, memory, disk, plan and settings written."""
    home = Home(root / "home").create()
    settings = settings_for(params, {}, {}, home)
    started = time.perf_counter()
    plan = plan_campaign(RunDir(root / "run"), settings, home, source_repo={}, check_source=lambda *_: None)
    seconds = time.perf_counter() - started
    name = f"planning {len(plan.models)} models x {len(plan.scenarios)} scenarios"
    return Row(name, seconds, "s", 1.0, "at most", note=f"{len(plan.steps)} steps")


def _makespan_rows(root: Path) -> list[Row]:
    home, host, rows = Home(root / "hub").create(), Host(), []
    pretend_hub(home, full_models())
    for devices in DEVICE_COUNTS:
        slots = devices * host.cpu_slots_per_device
        case = plan_case(devices, home, slots)
        _, found = play(case, "small_first", host)
        rows.append(
            Row(
                f"simulated makespan of the full suite on {devices} x 80 GB",
                found["makespan_s"],
                "s",
                1.1,
                "at most",
                reference=found["bound_s"],
                reference_name="max(work / devices, longest chain)",
                note=f"{len(case.plan.models)} models; {len(case.left_out)} do not fit; {slots} slots of `cpu`",
            )
        )
    return rows

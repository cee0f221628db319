"""On a real scheduler with pretended devices and the shapes of the full suite: order, pools, leases, two campaigns."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from evpack.airflow.config import CAMPAIGN_DAG
from evpack.checkpoint.delta import DELTA_FILE
from evpack.plan.hosts import HOSTS_ENV, chosen_hosts
from evpack.plan.lanes import lanes_of
from evpack.plan.model import load_plan
from evpack.plan.order import ORDERS
from evpack.rundir import RunDir
from evpack.runtime.threads import frozen_settings
from evpack.steps.state import read_attempts
from evpack.steps.timeline import TIMELINE_NAME
from studies.scheduling.sham_step import SHAM_GB
from studies.scheduling.shapes import full_models
from studies.scheduling.stage import Stage, fixture_models, slots_of, stage
from studies.scheduling.tasks import CPU, GPU
from tests.scheduling.together_step import TOGETHER_ENV
from tests.scheduling.traces import (
    agreement,
    check_devices,
    check_fairness,
    check_order,
    check_pools,
    check_weights,
    moment,
    ran,
    simulated,
    step_ids,
)

pytestmark = pytest.mark.airflow

SMALL = ["mistralai/Mistral-7B-v0.1", "01-ai/Yi-34B", "Qwen/Qwen1.5-72B"]
SCENARIOS = ["quant_4bit_clean", "fp8_e5m2_clean", "prune_50pct_stress", "extreme_quant", "nan_injection"]
SLOTS = {GPU: 8, CPU: 4}
KEEP = os.environ.get("EVPACK_KEEP_TIMELINE")
"""Directory that gets the pictures, when set."""
TOGETHER = Path(__file__).with_name("together_step.py")
AGREE = 0.85
"""Share of starts in the simulator's order: the rest is what the machine's own load moves."""


def check_run(
    at: Stage, names: list[str], tied_s: float = 0.0, *, slots: Mapping[str, int] = SLOTS, compared: bool = True
) -> None:
    """Everything that must hold of campaigns that ran at once.

    Args:
        tied_s: starts closer than this are no order that a trace with delays can be held to.
        compared: whether the order of starts must be the simulator's.
    """
    runs = [RunDir(at.home.run_dir(CAMPAIGN_DAG, name)) for name in names]
    steps = {name: at.steps(name) for name in names}
    together = [task for name in names for task in steps[name]]
    assert all(task["state"] == "success" for task in ran(together))
    assert len(ran(together)) == sum(len(load_plan(run).steps) - 3 for run in runs)
    for name, run in zip(names, runs, strict=True):
        check_weights(steps[name], frozen_settings(run).order)
    check_order(together)
    check_fairness(steps)
    most = check_pools(together, slots)
    check_devices(runs)
    assert all((run.analysis / TIMELINE_NAME).is_file() for run in runs)
    if not compared:
        return
    spans = {
        span.task.id: span.start
        for span in simulated(runs, steps, slots, together=len(runs) > 1)
        if span.task.pool == GPU
    }
    real = {}
    for name, run in zip(names, runs, strict=True):
        found = ran(steps[name])
        for task, step_id in zip(found, step_ids(load_plan(run), found), strict=True):
            real[f"{name}/{step_id}"] = moment(task, "queued_when")
    agrees = agreement({step_id: real[step_id] for step_id in spans}, spans, tied_s)
    print(f"{len(ran(together))} steps, up to {most} devices at once, {agrees:.3f} of starts as simulated")
    assert agrees >= AGREE


def test_two_campaigns_at_once_share_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(ORDERS)
    monkeypatch.setenv(TOGETHER_ENV, ",".join(names))
    slots = {**SLOTS, CPU: len(SMALL) * len(names) + 2}  # for all presets at once, and for what they wait for
    with stage(tmp_path, SMALL, devices=slots[GPU], cpu_slots=slots[CPU], scale=0.02, program=TOGETHER) as at:
        for name in names:
            at.start(name, models=SMALL, scenarios=["quant_4bit_clean", "nan_injection"], order=name)
        for name in names:
            at.wait(name)
        check_run(at, names, tied_s=3.0, slots=slots)


def test_each_host_works_through_its_own_models(tmp_path: Path) -> None:
    """Two hosts that are both this machine: what a worker of a queue would run, the local executor runs here."""
    hosts = "alpha:4x80:2,beta:2x80:2"
    with stage(tmp_path, SMALL, devices=6, cpu_slots=0, scale=0.02, hosts=hosts) as at:
        run = at.start("hosts", models=SMALL, scenarios=["quant_4bit_clean", "nan_injection"])
        at.wait("hosts")
        check_run(at, ["hosts"], slots=slots_of(hosts), compared=False)
        steps = ran(at.steps("hosts"))
    lanes = {lane.id: lane for lane in lanes_of(chosen_hosts({HOSTS_ENV: hosts}))}
    for task in steps:
        lane = lanes[task["task_id"].partition(".")[0]]
        on_device = task["task_id"].endswith((".calibrate", ".evaluate"))
        assert (task["queue"], task["pool"]) == (lane.host, lane.pool if on_device else lane.cpu_pool)
    scored = {
        host: [t for t in steps if t["queue"] == host and t["pool"].startswith("gpu")] for host in ("alpha", "beta")
    }
    begin = {host: min(moment(task, "start_date") for task in tasks) for host, tasks in scored.items()}
    end = {host: max(moment(task, "end_date") for task in tasks) for host, tasks in scored.items()}
    assert begin["alpha"] < end["beta"] and begin["beta"] < end["alpha"]
    devices = {model.label: (model.devices, model.lane.partition("-")[2]) for model in load_plan(run).models}
    assert devices["Qwen1.5-72B"] == (4, "alpha") and devices["Yi-34B"][1] == "beta"


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_full_suite(tmp_path: Path, order: str) -> None:
    models = full_models()
    with stage(tmp_path, models, devices=8, cpu_slots=4, scale=0.15, cpu_scale=0.01) as at:
        run = at.start(order, models=models, order=order)
        at.wait(order)
        check_run(at, [order], tied_s=5.0)
        steps = ran(at.steps(order))
    plan = load_plan(run)
    assert {model.devices for model in plan.models} == {1, 2, 4}
    lanes = {model.lane for model in plan.models}
    assert len(lanes) == 4
    first = {
        lane: min(moment(task, "queued_when") for task in tasks_of(steps, lane, "cells.evaluate")) for lane in lanes
    }
    last = {
        lane: max(moment(task, "end_date") for task in tasks_of(steps, lane, "models.derive_preset")) for lane in lanes
    }
    # no lane waits for another lane's presets: one evaluates while another has none yet
    assert any(first[one] < last[other] for one in lanes for other in lanes - {one})
    if KEEP:
        shutil.copy(run.analysis / TIMELINE_NAME, Path(KEEP) / f"timeline_{order}.svg")


def tasks_of(steps: list[dict[str, Any]], lane: str, name: str) -> list[dict[str, Any]]:
    """What ran of one task of one lane."""
    return [task for task in steps if task["task_id"] == f"{lane}.{name}"]


@pytest.mark.slow
def test_variants_never_exceed_their_budget(tmp_path: Path) -> None:
    """Evaluation is slow and creation fast, so that variants would pile up: creation waits, at no cost of a retry."""
    budget_gb = 320
    with stage(tmp_path, SMALL, devices=8, cpu_slots=4, scale=0.3, cpu_scale=0.01) as at:
        settings = {"variant_budget_gb": budget_gb, "reschedule_pause": 0, "scenarios": SCENARIOS}
        run = at.start("budget", models=SMALL, **settings)
        with watching(run) as seen:
            at.wait("budget")
        check_run(at, ["budget"], compared=False)
    assert 0.5 * budget_gb * SHAM_GB < max(seen) <= budget_gb * SHAM_GB
    refused = [
        record
        for step in load_plan(run).steps
        for record in read_attempts(run, step.id)
        if record["class"] == "no_room"
    ]
    print(f"up to {max(seen) / SHAM_GB:.0f} of {budget_gb} GB at once, {len(refused)} times no room")
    assert refused
    assert not list(run.root.glob(f"*/models/*/{DELTA_FILE}"))  # all given back


@contextmanager
def watching(run: RunDir) -> Iterator[list[int]]:
    """Bytes of all variants on disk, looked at ten times a second."""
    seen, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            total = 0
            for file in run.root.glob(f"*/models/*/{DELTA_FILE}"):
                with suppress(FileNotFoundError):
                    total += file.stat().st_size
            seen.append(total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_1100_cells_in_one_lane(tmp_path: Path) -> None:
    """More instances than Airflow expands by default; nothing is lost and the order is the list's."""
    with stage(tmp_path, [], devices=8, cpu_slots=4, scale=0, inline=True) as at:
        run = at.start("wide", **fixture_models(tmp_path, 55))
        at.wait("wide")
        steps = ran(at.steps("wide"))
    cells = [task for task in steps if task["task_id"] == "gpu1_s.cells.evaluate"]
    assert sorted(task["map_index"] for task in cells) == list(range(1100))
    assert all(task["state"] == "success" for task in steps)
    check_pools(steps, SLOTS)
    check_order(steps)
    check_devices([run])

"""On a real scheduler with pretended devices and the shapes of the full suite: order, pools, leases, two campaigns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from evpack.airflow.config import CAMPAIGN_DAG
from evpack.files import write_json
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.steps.timeline import TIMELINE_NAME
from studies.scheduling.shapes import full_models
from studies.scheduling.stage import FIXTURE, Stage, stage
from studies.scheduling.tasks import CPU, GPU
from tests.scheduling.traces import (
    agreement,
    check_devices,
    check_fairness,
    check_order,
    check_pools,
    moment,
    ran,
    simulated,
    step_ids,
)

pytestmark = pytest.mark.airflow

SMALL = ["mistralai/Mistral-7B-v0.1", "01-ai/Yi-34B", "Qwen/Qwen1.5-72B"]
SLOTS = {GPU: 8, CPU: 4}
KEEP = os.environ.get("EVPACK_KEEP_TIMELINE")
"""Directory that gets the pictures, when set."""
AGREE = 0.9
"""Share of starts in the simulator's order: the rest is what the machine's own load moves."""
TUNED = {
    "quant_rtn": {"status": "selected", "scope": "ffn", "bits": 8, "group_size": 0},
    "fp8_quant": {"status": "selected", "scope": "ffn", "format": "e5m2"},
    "magnitude_prune": {"status": "selected", "scope": "ffn", "sparsity": 0.12},
    "lowrank_svd": {"status": "selected", "scope": "ffn", "rank": 2},
}


def check_run(at: Stage, names: list[str], tied_s: float) -> None:
    """Everything that must hold of campaigns that ran at once.

    Args:
        tied_s: starts closer than this are no order that a trace with delays can be held to.
    """
    runs = [RunDir(at.home.run_dir(CAMPAIGN_DAG, name)) for name in names]
    steps = {name: at.steps(name) for name in names}
    together = [task for name in names for task in steps[name]]
    assert all(task["state"] == "success" for task in ran(together))
    assert len(ran(together)) == sum(len(load_plan(run).steps) - 3 for run in runs)
    check_order(together)
    check_fairness(steps)
    most = check_pools(together, SLOTS)
    check_devices(runs)
    assert all((run.analysis / TIMELINE_NAME).is_file() for run in runs)
    spans = {span.task.id: span.start for span in simulated(runs, steps, SLOTS) if span.task.pool == GPU}
    real = {}
    for name, run in zip(names, runs, strict=True):
        found = ran(steps[name])
        for task, step_id in zip(found, step_ids(load_plan(run), found), strict=True):
            real[f"{name}/{step_id}"] = moment(task, "queued_when")
    agrees = agreement({step_id: real[step_id] for step_id in spans}, spans, tied_s)
    print(f"{len(together)} steps, up to {most} devices at once, {agrees:.3f} of the starts in the simulator's order")
    assert agrees >= AGREE


def test_two_campaigns_at_once_share_the_devices(tmp_path: Path) -> None:
    names = ["first", "second"]
    with stage(tmp_path, SMALL, devices=8, cpu_slots=4, scale=0.02) as at:
        for name in names:
            at.start(name, models=SMALL, scenarios=["quant_4bit_clean", "nan_injection"])
        for name in names:
            at.wait(name)
        check_run(at, names, tied_s=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["small_first", "large_first"])
def test_the_full_suite(tmp_path: Path, order: str) -> None:
    models = full_models()
    with stage(tmp_path, models, devices=8, cpu_slots=4, scale=0.15, cpu_scale=0.01) as at:
        run = at.start(order, models=models, order=order)
        at.wait(order)
        check_run(at, [order], tied_s=5.0)
        steps = ran(at.steps(order))
    plan = load_plan(run)
    assert {model.devices for model in plan.models} == {1, 2, 4}
    assert len({model.lane for model in plan.models}) == 4
    first = min(moment(task, "queued_when") for task in steps if task["task_id"] == "gpu1_s.cells.evaluate")
    last_preset = max(moment(task, "end_date") for task in steps if task["task_id"] == "gpu4_x.models.derive_preset")
    assert first < last_preset  # no lane waits for another lane's presets
    if KEEP:
        shutil.copy(run.analysis / TIMELINE_NAME, Path(KEEP) / f"timeline_{order}.svg")


@pytest.mark.slow
def test_1100_cells_in_one_lane(tmp_path: Path) -> None:
    """More instances than Airflow expands by default; nothing is lost and the order is the list's."""
    sources = [shutil.copytree(FIXTURE / "model", tmp_path / "models" / f"m{number:02d}") for number in range(55)]
    tuned = tmp_path / "tuned.json"
    write_json(tuned, {"_meta": {"schema": "tuned_edit_params_v1"}, "models": {}, "defaults": TUNED})
    with stage(tmp_path, [], devices=8, cpu_slots=4, scale=0, inline=True) as at:
        run = at.start("wide", models=[str(source) for source in sources], tuned_edit_params_file=str(tuned))
        at.wait("wide")
        steps = ran(at.steps("wide"))
    cells = [task for task in steps if task["task_id"] == "gpu1_s.cells.evaluate"]
    assert sorted(task["map_index"] for task in cells) == list(range(1100))
    assert all(task["state"] == "success" for task in steps)
    check_pools(steps, SLOTS)
    check_order(steps)
    check_devices([run])

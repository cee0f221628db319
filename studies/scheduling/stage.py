"""A real Airflow over pretended devices: the campaign's own DAG, pools, weights, plan and leases.

Only the steps' work is a pause (`sham_step`). Shows how a campaign of any shape is scheduled, without a device.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from evpack.airflow import embedded
from evpack.airflow.client import FINISHED, Client
from evpack.airflow.config import CAMPAIGN_DAG, PROJECT_ENV, Deployment
from evpack.errors import Transient
from evpack.files import write_json
from evpack.home import ENV_NAME, Home
from evpack.plan.hosts import HOSTS_ENV
from evpack.plan.nvml import SIMULATED_ENV
from evpack.rundir import RunDir
from evpack.runtime.pools import pool_slots
from studies.scheduling.sham_step import SCALES_ENV
from studies.scheduling.shapes import pretend_hub
from studies.scheduling.tasks import CPU, GPU

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "include" / "evpack" / "assets" / "fixture"
POLL_S = 0.5
SMALL_TEXT = {
    "suite": "full",
    "profile": "small",
    "dataset": "text",
    "text_path": str(FIXTURE / "text"),
    "guards_order": ["invariants"],
    "seq_len": 128,
    "preview_windows": 16,
    "final_windows": 16,
    "use_batch_edits": False,
    "skip_disk_preflight": True,
    "min_free_disk_gb": 0,
}
"""The full suite over a text that is here."""
_TUNED = {
    "quant_rtn": {"status": "selected", "scope": "ffn", "bits": 8, "group_size": 0},
    "fp8_quant": {"status": "selected", "scope": "ffn", "format": "e5m2"},
    "magnitude_prune": {"status": "selected", "scope": "ffn", "sparsity": 0.12},
    "lowrank_svd": {"status": "selected", "scope": "ffn", "rank": 2},
}
"""Of models that no shipped table knows."""

SHAM = Path(__file__).with_name("sham_step.py")
DEADLINE_S = 4 * 3600.0
"""Longest campaign; only there so that a hang ends."""

_DAG_FILE = """# Airflow looks only into files with the words airflow and dag.
import sys
from pathlib import Path

sys.path.insert(0, {root!r})

from studies.scheduling.sham_dags import sham_dags

evidence_campaign, evidence_nightly = sham_dags(Path({program!r}), inline={inline})
"""


@dataclass(frozen=True)
class Stage:
    """A running Airflow and its deployment."""

    home: Home
    client: Client
    airflow: embedded.RunningAirflow

    def start(self, run_id: str, **conf: Any) -> RunDir:
        """Start a campaign; its run directory."""
        run = self.home.run_dir(CAMPAIGN_DAG, run_id)
        self.client.trigger(CAMPAIGN_DAG, run_id, {**SMALL_TEXT, **conf})
        return RunDir(run)

    def wait(self, run_id: str) -> str:
        """The state in which a run ended.

        Raises:
            Transient: when a component of Airflow died, or the run does not end.
        """
        deadline = time.monotonic() + DEADLINE_S
        while (state := self.client.run_state(CAMPAIGN_DAG, run_id)) not in FINISHED:
            self.airflow.check()
            if time.monotonic() > deadline:
                raise Transient(f"run {run_id} does not end")
            time.sleep(POLL_S)
        return state

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The task instances of the lanes' steps, as Airflow tells of them."""
        return [task for task in self.client.tasks(CAMPAIGN_DAG, run_id) if task["task_id"].count(".") == 2]


@contextmanager
def stage(
    folder: Path,
    models: Sequence[str],
    *,
    devices: int,
    cpu_slots: int,
    scale: float,
    cpu_scale: float | None = None,
    inline: bool = False,
    program: Path = SHAM,
    hosts: str = "",
) -> Iterator[Stage]:
    """Start Airflow in a new home below `folder`, with models of the full suite and pretended 80 GB devices.

    Args:
        cpu_slots: slots of the pool `cpu`, whatever this machine has.
        scale: seconds of a step on devices per second of the formula.
        cpu_scale: the same of all other steps; `scale` when None.
        inline: run steps in the process of their task.
        program: what runs in the place of `evpack step`.
        hosts: EVPACK_HOSTS; the pools are then those of the hosts, all of which are this machine.
    """
    home = Home(folder / "home").create()
    pretend_hub(home, models, tokenizer=FIXTURE / "model")
    gpus = folder / "gpus.json"
    gpus.write_text(json.dumps({"devices": [{"uuid": f"GPU-{n}", "memory_gb": 80} for n in range(devices)]}))
    slots = slots_of(hosts) or {GPU: devices, CPU: cpu_slots}
    deployment = Deployment.locate(home, {PROJECT_ENV: str(_project(folder / "project", program, inline))})
    scales = json.dumps([scale, scale if cpu_scale is None else cpu_scale])
    variables = {ENV_NAME: str(home.root), SIMULATED_ENV: str(gpus), SCALES_ENV: scales, HOSTS_ENV: hosts}
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(embedded, "pool_slots", lambda: slots),
        embedded.running(deployment, print) as airflow,
        Client(airflow.endpoint) as client,
    ):
        for pool, count in slots.items():
            client._request("PATCH", f"/api/v2/pools/{pool}", {"name": pool, "slots": count, "include_deferred": True})
        write_json(home.pools, slots)
        yield Stage(home, client, airflow)


def slots_of(hosts: str) -> dict[str, int]:
    """Slots of the pools of the hosts that EVPACK_HOSTS lists; none where it lists none."""
    with mock.patch.dict(os.environ, {HOSTS_ENV: hosts}):
        return pool_slots() if hosts else {}


def fixture_models(folder: Path, count: int) -> dict[str, Any]:
    """Parameters of a campaign over copies of the fixture model, which are made below `folder`."""
    tuned = folder / "tuned.json"
    write_json(tuned, {"_meta": {"schema": "tuned_edit_params_v1"}, "models": {}, "defaults": _TUNED})
    copies = [shutil.copytree(FIXTURE / "model", folder / "models" / f"m{number:02d}") for number in range(count)]
    return {"models": [str(copy) for copy in copies], "tuned_edit_params_file": str(tuned)}


def _project(folder: Path, program: Path, inline: bool) -> Path:
    """A project whose DAGs start sham steps."""
    (folder / "dags").mkdir(parents=True)
    dags = _DAG_FILE.format(root=str(ROOT), program=str(program), inline=inline)
    (folder / "dags" / "evidence_campaign.py").write_text(dags)
    (folder / "plugins").symlink_to(ROOT / "plugins")
    return folder

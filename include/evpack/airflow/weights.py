"""The weight of an Airflow task by the plan's order, and the cluster policy that applies the order of a run.

A weight strategy is asked for a task's weight without its run, so `SmallFirst` (plugins/evpack_plugin.py) can only
know the default order. Airflow's mutation hook gets the run as well, and sets the weight again where that has another.
Airflow finds the hook in ``airflow_local_settings``, which `config.Deployment.write_config` puts beside airflow.cfg.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evpack.errors import EvpackError
from evpack.plan.lanes import lane_named
from evpack.plan.model import StepType
from evpack.plan.order import ORDERS, SMALL_FIRST, priority
from evpack.rundir import RunDir

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

ORDER_ENV = "PACK_ORDER"


def task_weight(task_id: str, map_index: int, order: str = SMALL_FIRST) -> int:
    """The weight of a lane's step task, ``<lane>.<group>.<step type>``.

    Raises:
        KeyError, ValueError: for any other task.
    """
    lane, _, rest = task_id.partition(".")
    return priority(StepType(rest.rpartition(".")[2]), lane, map_index, order)


def order_of(conf: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The order of a DAG run: its conf, that of the campaign it takes up, else the environment's.

    What cannot be read or is no order counts as the default: `plan` refuses such a run in words of its own.
    """
    named = conf.get("order")
    if named is None and (taken_up := conf.get("resume") or conf.get("output_dir")):
        named = _frozen_order(str(taken_up))
    named = named or environ.get(ORDER_ENV, "").strip()
    return str(named) if named in ORDERS else SMALL_FIRST


def task_instance_mutation_hook(task_instance: TaskInstance, dag_run: DagRun | None = None) -> None:
    """Airflow's hook, called in the scheduler whenever a task instance is made, expanded or cleared."""
    lane, _, group = task_instance.task_id.partition(".")
    if dag_run is None or lane_named(lane) is None or "." not in group:
        return
    order = order_of(dag_run.conf or {}, os.environ)
    if order != SMALL_FIRST:
        task_instance.priority_weight = task_weight(task_instance.task_id, task_instance.map_index, order)


def _frozen_order(run_dir: str) -> str | None:
    from evpack.runtime.threads import frozen_settings

    try:
        return frozen_settings(RunDir(Path(run_dir))).order
    except (OSError, ValueError, EvpackError):
        return None

"""The shape of the DAGs: what Airflow 3.3 gets silently wrong must not be in them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.mappedoperator import MappedOperator

from evpack.airflow.endings import StepRetryPolicy
from evpack.airflow.factory import WEIGHT_RULE, build_dags
from evpack.plan.hosts import HOSTS_ENV, chosen_hosts
from evpack.plan.lanes import LANES, lanes_of
from evpack.plan.model import StepType
from evpack.settings import MOST_RETRIES

MODEL_TYPES = ("setup_baseline", "calibrate", "derive_preset")
CELL_TYPES = ("create", "evaluate")


@pytest.fixture(scope="module")
def dags() -> tuple[DAG, DAG]:
    return build_dags()


@pytest.fixture(scope="module")
def campaign(dags: tuple[DAG, DAG]) -> DAG:
    return dags[0]


def lane_tasks(campaign: DAG) -> list[Any]:
    return [task for task in campaign.tasks if task.task_id.count(".") == 2]


def test_dag_files_import_without_errors(dag_files: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(dag_files))
    assert bag.import_errors == {}
    assert sorted(bag.dag_ids) == ["evidence_campaign", "evidence_nightly"]


def test_importing_the_dags_takes_no_heavy_library(dag_files: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import evidence_campaign; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'accelerate', 'docker', 'pynvml', 'huggingface_hub')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(dag_files)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_no_task_has_more_than_one_mapped_ancestor_group(campaign: DAG) -> None:
    for task in campaign.tasks:
        groups = list(task.iter_mapped_task_groups())
        expected = 1 if task in lane_tasks(campaign) else 0
        assert len(groups) == expected, task.task_id
        assert not isinstance(task, MappedOperator), task.task_id


def test_one_root_and_one_leaf(dags: tuple[DAG, DAG]) -> None:
    for dag in dags:
        assert [task.task_id for task in dag.roots] == ["plan"]
        assert [task.task_id for task in dag.leaves] == ["gate"]


def test_every_lane_has_its_groups_with_literal_pool_and_slots(campaign: DAG) -> None:
    for lane in LANES:
        for group, types in (("models", MODEL_TYPES), ("cells", CELL_TYPES)):
            for type_ in types:
                task = campaign.get_task(f"{lane.id}.{group}.{type_}")
                on_device = type_ in ("calibrate", "evaluate")
                assert (task.pool, task.pool_slots) == ((lane.pool, lane.pool_slots) if on_device else ("cpu", 1))
    assert len(lane_tasks(campaign)) == len(LANES) * 5


def test_each_host_has_its_lanes_with_pools_and_a_queue_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_ENV, "alpha:8x80:32,beta:1x40:16")
    dag, _ = build_dags()
    lanes = lanes_of(chosen_hosts())
    assert len(lane_tasks(dag)) == len(lanes) * 5 == (20 + 8) * 5
    for lane in lanes:
        evaluate, create = (dag.get_task(f"{lane.id}.cells.{type_}") for type_ in ("evaluate", "create"))
        assert (evaluate.pool, evaluate.pool_slots, evaluate.queue) == (lane.pool, lane.pool_slots, lane.host)
        assert (create.pool, create.pool_slots, create.queue) == (f"cpu-{lane.host}", 1, lane.host)
    assert {dag.get_task(name).queue for name in ("plan", "compile_verdict", "gate")} == {"default"}


def test_steps_run_whatever_happened_and_carry_the_weight_rule_by_name(campaign: DAG) -> None:
    for task in lane_tasks(campaign):
        assert task.trigger_rule == "all_done"
        assert task.map_index_template == "{{ task.title }}"
    for task in campaign.tasks:
        assert task.retries == MOST_RETRIES and isinstance(task.retry_policy, StepRetryPolicy)
    for name in ("compile_verdict", "build_pack", "verify_pack", "gate"):
        assert campaign.get_task(name).trigger_rule == "all_done"
    assert WEIGHT_RULE == "evpack_plugin.SmallFirst"


def test_edges_within_and_between_the_groups_of_a_lane(campaign: DAG) -> None:
    """Airflow adds the producer of a group's list to every task of the group."""
    models, cells = {"select_models"}, {"select_cells"}
    expected = {
        "models.setup_baseline": models,
        "models.calibrate": models | {"models.setup_baseline"},
        "models.derive_preset": models | {"models.calibrate"},
        "cells.create": cells | {"models.setup_baseline"},
        "cells.evaluate": cells | {"cells.create", "models.derive_preset"},
    }
    for lane in (lane.id for lane in LANES):
        for name, needs in expected.items():
            upstream = campaign.get_task(f"{lane}.{name}").upstream_task_ids
            assert upstream == {f"{lane}.{need}" for need in needs}


def test_the_verdict_waits_for_plan_and_every_lane(campaign: DAG) -> None:
    upstream = campaign.get_task("compile_verdict").upstream_task_ids
    steps = ("models.derive_preset", "cells.evaluate")
    assert upstream == {"plan", *(f"{lane.id}.{step}" for lane in LANES for step in steps)}


def test_campaign_steps_are_named_after_their_step_type(campaign: DAG) -> None:
    closing = {task.task_id for task in campaign.tasks if "." not in task.task_id} - {"plan", "gate"}
    assert closing == {StepType.COMPILE_VERDICT.value, StepType.BUILD_PACK.value, StepType.VERIFY_PACK.value}


def test_two_parses_serialise_equal() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    first, second = (
        [json.dumps(DagSerialization.to_dict(dag), sort_keys=True) for dag in build_dags()] for _ in range(2)
    )
    assert first == second


def test_nightly_is_the_same_campaign_on_a_schedule(dags: tuple[DAG, DAG]) -> None:
    campaign, nightly = dags
    assert nightly.task_ids == campaign.task_ids
    assert nightly.is_paused_upon_creation is True
    assert nightly.max_active_runs == 1
    assert nightly.catchup is False
    assert campaign.schedule is None


@pytest.mark.parametrize(
    "asked", ["00:00:00", "01:59:59", "02:00:01", "02:04:00", "03:03:14", "04:23:59", "04:24:01", "23:59:59"]
)
def test_switching_nightly_on_starts_no_run_of_the_past(
    asked: str, dags: tuple[DAG, DAG], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.timetables import trigger
    from airflow.timetables.base import TimeRestriction

    now = datetime.fromisoformat(f"2026-11-24T{asked}+00:00")
    monkeypatch.setattr(trigger, "utcnow", lambda: now)
    nightly = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dags[1]))))
    info = nightly.timetable.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(earliest=None, latest=None, catchup=False)
    )
    assert nightly.start_date is None
    assert info is not None
    assert now < info.run_after <= now + timedelta(days=1)


def test_every_param_defaults_to_null_and_is_described(dags: tuple[DAG, DAG]) -> None:
    for dag in dags:
        assert dag.params.dump() == dict.fromkeys(dag.params)
        for name in dag.params:
            schema = dag.params.get_param(name).schema
            assert schema["description_md"], name
            assert schema["type"][0] == "null", name


def test_params_offer_the_catalog_and_refuse_the_rest() -> None:
    from airflow.sdk.exceptions import AirflowException

    campaign = build_dags()[0]  # its own: what a parameter resolves to, it keeps
    suite = campaign.params.get_param("suite")
    assert {"demo", "fixture", "subset"} <= set(suite.schema["enum"])
    assert suite.resolve("fixture") == "fixture"
    for name, wrong in (("suite", "nope"), ("seq_len", 1), ("seq_len", "many"), ("tier", "lax"), ("net", 3)):
        with pytest.raises((AirflowException, ValueError)):
            campaign.params.get_param(name).resolve(wrong)


def test_params_hold_no_secret_and_nothing_of_the_deployment(campaign: DAG) -> None:
    assert not {"signing_key", "worker_timeout", "gpu_reservation_ttl", "num_gpus"} & set(campaign.params)
    assert {"suite", "models", "scenarios", "output_dir", "resume", "preview_windows"} <= set(campaign.params)

"""SmallFirst: the weight of a task comes from its id and its place in the list, and Airflow finds it by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.airflow.config import MAX_MAP_LENGTH
from evpack.airflow.factory import WEIGHT_RULE, build_dags
from evpack.airflow.weights import order_of, task_instance_mutation_hook, task_weight
from evpack.plan.lanes import LANES
from evpack.publishing import write_atomic
from evpack.settings import Settings
from evpack_plugin import EvpackPlugin, SmallFirst

GROUP_OF = {
    "setup_baseline": "models",
    "calibrate": "models",
    "derive_preset": "models",
    "create": "cells",
    "evaluate": "cells",
}


def weight(lane: str, type_: str, map_index: int) -> int:
    instance: Any = SimpleNamespace(task_id=f"{lane}.{GROUP_OF[type_]}.{type_}", map_index=map_index)
    return SmallFirst().get_weight(instance)


def is_small_first(rule: object) -> bool:
    """Airflow loads plugins as modules of its own, so the class is another object of the same name."""
    return f"{type(rule).__module__}.{type(rule).__qualname__}" == WEIGHT_RULE


lanes = st.sampled_from([lane.id for lane in LANES])
types = st.sampled_from(sorted(GROUP_OF))
indexes = st.integers(0, MAX_MAP_LENGTH - 1)


@given(lanes, types, indexes, indexes)
def test_earlier_in_the_list_is_heavier(lane: str, type_: str, one: int, other: int) -> None:
    assert (weight(lane, type_, one) > weight(lane, type_, other)) == (one < other)


@given(lanes, types, types, indexes, indexes)
def test_bands_of_two_types_never_overlap(lane: str, one: str, other: str, i: int, j: int) -> None:
    if one != other:
        assert (weight(lane, one, i) > weight(lane, other, j)) == (weight(lane, one, 0) > weight(lane, other, 0))


@given(lanes, types)
def test_an_instance_that_is_not_expanded_yet_weighs_like_the_first(lane: str, type_: str) -> None:
    assert weight(lane, type_, -1) == weight(lane, type_, 0)


def test_a_cell_is_finished_before_the_next_is_begun() -> None:
    assert weight("cpu_s", "evaluate", 100) > weight("cpu_s", "create", 0)


def test_small_models_go_first_across_lanes() -> None:
    small, large = weight("gpu1_s", "evaluate", MAX_MAP_LENGTH - 1), weight("gpu1_x", "evaluate", 0)
    assert small > large


def test_airflow_knows_the_rule_by_the_name_the_dags_use() -> None:
    from airflow.task.priority_strategy import validate_and_load_priority_weight_strategy

    assert is_small_first(validate_and_load_priority_weight_strategy(WEIGHT_RULE))
    assert EvpackPlugin.priority_weight_strategies == [SmallFirst]


@pytest.mark.parametrize("dag_index", [0, 1])
def test_the_rule_survives_serialisation(dag_index: int) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    dag = DagSerialization.from_dict(DagSerialization.to_dict(build_dags()[dag_index]))
    for lane in LANES:
        for type_, group in GROUP_OF.items():
            assert is_small_first(dag.get_task(f"{lane.id}.{group}.{type_}").weight_rule)


# --- the order of a run across lanes ---------------------------------------------------------------------------------
TASK = "gpu4_x.cells.evaluate"


def hooked(task_id: str, conf: dict[str, Any] | None, map_index: int = 3) -> int:
    instance: Any = SimpleNamespace(task_id=task_id, map_index=map_index, priority_weight=7)
    run: Any = None if conf is None else SimpleNamespace(conf=conf)
    task_instance_mutation_hook(instance, run)
    return int(instance.priority_weight)


def test_the_hook_sets_the_weights_of_a_run_with_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hooked(TASK, {"order": "large_first"}) == task_weight(TASK, 3, "large_first") > task_weight(TASK, 3)
    assert hooked(TASK, {"order": "small_first"}) == hooked(TASK, {}) == hooked(TASK, None) == 7
    monkeypatch.setenv("PACK_ORDER", "large_first")
    assert hooked(TASK, {}) == task_weight(TASK, 3, "large_first")
    assert hooked(TASK, {"order": "small_first"}) == 7  # conf before environment


@pytest.mark.parametrize("task_id", ["plan", "gate", "gpu4_x.select_cells", "other.cells.evaluate"])
def test_the_hook_leaves_other_tasks_alone(task_id: str) -> None:
    assert hooked(task_id, {"order": "large_first"}) == 7


def test_a_resumed_campaign_keeps_its_order(tmp_path: Path) -> None:
    frozen = tmp_path / "state" / "settings.json"
    write_atomic(frozen, json.dumps(Settings(order="large_first").to_json()).encode())
    assert order_of({"resume": str(tmp_path)}, {}) == order_of({"output_dir": str(tmp_path)}, {}) == "large_first"
    assert order_of({"resume": str(tmp_path / "gone")}, {}) == "small_first"
    assert order_of({"order": "nonsense"}, {}) == "small_first"
    for hostile in ("a\0b", "x" * 10_000, "\ud800", {"a": []}, 7):  # the scheduler asks before `plan` can refuse
        assert order_of({"resume": hostile}, {}) == order_of({"order": hostile}, {}) == "small_first"


def test_airflow_calls_the_hook(deployment: Any) -> None:
    from airflow.settings import get_policy_plugin_manager

    from airflow import settings

    assert (deployment.root / "config" / "airflow_local_settings.py").is_file()
    instance = SimpleNamespace(task_id=TASK, map_index=3, priority_weight=7)
    settings.task_instance_mutation_hook(instance, dag_run=SimpleNamespace(conf={"order": "large_first"}))
    assert get_policy_plugin_manager().hook.task_instance_mutation_hook.get_hookimpls()
    assert instance.priority_weight == task_weight(TASK, 3, "large_first")


def test_no_lane_waits_for_another_lane() -> None:
    dag = build_dags()[0]
    for task in dag.tasks:
        lane, dot, _ = task.task_id.partition(".")
        if dot:
            assert {upstream.partition(".")[0] for upstream in task.upstream_task_ids} <= {lane, "plan"}

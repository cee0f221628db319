"""What this project adds to Airflow itself. Imported by every Airflow process: nothing heavy here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.plugins_manager import AirflowPlugin
from airflow.task.priority_strategy import PriorityWeightStrategy

from evpack.airflow import listeners as scheduler_side
from evpack.airflow.one_writer import OneWriter
from evpack.airflow.weights import task_weight

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance


class SmallFirst(PriorityWeightStrategy):
    """The plan's order as a task's weight: step type, lane (both from the task id) and place in the mapped list."""

    def get_weight(self, ti: TaskInstance) -> int:
        """The weight; heavier tasks start first."""
        return task_weight(ti.task_id, ti.map_index)


class EvpackPlugin(AirflowPlugin):
    """Registers the above."""

    name = "evpack"
    priority_weight_strategies: ClassVar[list[type]] = [SmallFirst]
    listeners: ClassVar[list[Any]] = [scheduler_side]
    fastapi_root_middlewares: ClassVar[list[Any]] = [{"name": "one writer", "middleware": OneWriter}]

"""What this project adds to Airflow itself. Imported by every Airflow process: nothing heavy here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.plugins_manager import AirflowPlugin
from airflow.task.priority_strategy import PriorityWeightStrategy

from evpack.plan.model import StepType
from evpack.plan.order import priority

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance


class SmallFirst(PriorityWeightStrategy):
    """The plan's order as a task's weight: step type, lane (both from the task id) and place in the mapped list."""

    def get_weight(self, ti: TaskInstance) -> int:
        """The weight; heavier tasks start first."""
        lane, _, rest = ti.task_id.partition(".")
        return priority(StepType(rest.rpartition(".")[2]), lane, ti.map_index)


class EvpackPlugin(AirflowPlugin):
    """Registers the above."""

    name = "evpack"
    priority_weight_strategies: ClassVar[list[type]] = [SmallFirst]

"""Which waiting tasks Airflow starts next: the loop of its scheduler's critical section, without the database.

As in `SchedulerJobRunner._executable_task_instances_to_queued` of Airflow 3.3: the heaviest first (then by logical date
and map index), at most so many are looked at; a task that needs more slots than its pool has open is passed over, and
what is lighter may run. Only when nothing could be started, the passed-over tasks and pools are left out and more are
looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from studies.scheduling.tasks import Task


def starting_order(task: Task) -> tuple[int, int, int]:
    """Airflow's sort key."""
    return (-task.weight, task.age, task.map_index)


def choose(waiting: Iterable[Task], open_slots: Mapping[str, int], limit: int) -> list[Task]:
    """The tasks to start now, in this order.

    Args:
        open_slots: free slots by pool.
        limit: tasks looked at per query (`max_tis_per_query`, and what the executor may still take).
    """
    slots = dict(open_slots)
    limit = min(limit, sum(slots.values()))
    candidates = sorted(waiting, key=starting_order)
    full = {pool for pool, count in slots.items() if count <= 0}
    starved: set[str] = set()
    while True:
        looked_at = [t for t in candidates if t.pool not in full and t.dag_task not in starved][: max(limit, 0)]
        before = len(full) + len(starved)
        started: list[Task] = []
        for task in looked_at:
            if slots[task.pool] <= 0:
                full.add(task.pool)
            elif task.slots > slots[task.pool]:
                starved.add(task.dag_task)
            else:
                started.append(task)
                slots[task.pool] -= task.slots
        if started or len(looked_at) < limit or len(full) + len(starved) == before:
            return started

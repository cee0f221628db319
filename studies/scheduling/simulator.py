"""The simulation: tasks become ready, a rule starts some of them, they hold slots and devices, they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from studies.scheduling.rule import choose
from studies.scheduling.tasks import CPU, DEFAULT, DEFAULT_SLOTS, GPU, Task


@dataclass(frozen=True)
class Span:
    """One task as it ran."""

    task: Task
    start: float
    """Seconds from the beginning, when it took its slots."""
    end: float
    devices: tuple[int, ...] = ()
    """Numbers of the devices it held."""


@dataclass(frozen=True)
class Moment:
    """What a rule may know when it is asked."""

    now: float
    waiting: Sequence[Task]
    running: Sequence[Task]
    done: frozenset[str]
    open_slots: Mapping[str, int]


Rule = Callable[[Moment], list[Task]]


def airflow_rule(limit: int) -> Rule:
    """Airflow's, see `rule.choose`.

    Args:
        limit: `max_tis_per_query` of the configuration.
    """
    return lambda moment: choose(moment.waiting, moment.open_slots, limit)


class Simulation:
    """One run of some tasks over pools.

    Args:
        slots: slots by pool; those of `gpu` are the devices.
        rule: starts tasks; asked whenever something became ready or ended.
        overhead_s: what a task holds its slots beyond its step (process start, reports to the server).
        tick_s: tasks whose needs are done become ready only at multiples of this; 0: at once.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        slots: Mapping[str, int],
        rule: Rule | None = None,
        *,
        overhead_s: float = 0.0,
        tick_s: float = 0.0,
    ) -> None:
        self._env = simpy.Environment()
        self._slots = {DEFAULT: DEFAULT_SLOTS, **slots}
        self._rule = rule or airflow_rule(sum(slots.values()) + DEFAULT_SLOTS)
        self._overhead, self._tick = overhead_s, tick_s
        self._pending = {task.id: task for task in tasks}
        self._waiting: dict[str, Task] = {}
        self._running: dict[str, Task] = {}
        self._done: set[str] = set()
        self._free = list(range(self._slots.get(GPU, 0)))
        self._shared: dict[str, float] = {}
        self._changed = self._env.event()
        self.spans: list[Span] = []

    def run(self) -> list[Span]:
        """Play it through; the spans in order of their start.

        Raises:
            RuntimeError: when tasks are left that can never start.
        """
        self._env.process(self._schedule())
        if self._tick:
            self._env.process(self._beat())
        self._env.run()
        if self._pending or self._waiting:
            left = sorted([*self._pending, *self._waiting])
            raise RuntimeError(f"{len(left)} tasks can never start, among them {left[0]}")
        return sorted(self.spans, key=lambda span: span.start)

    def _schedule(self) -> Any:
        while self._pending or self._waiting or self._running:
            if not self._tick or self._env.now % self._tick == 0:
                self._promote()
            moment = Moment(
                self._env.now,
                tuple(self._waiting.values()),
                tuple(self._running.values()),
                frozenset(self._done),
                self._slots,
            )
            for task in self._rule(moment):
                del self._waiting[task.id]
                self._running[task.id] = task
                self._slots[task.pool] -= task.slots
                self._env.process(self._execute(task))
            yield self._changed
            # What changes at the same moment is seen together, as one loop of the scheduler sees it.
            yield self._env.timeout(0)
            self._changed = self._env.event()

    def _promote(self) -> None:
        ready = [task for task in self._pending.values() if task.needs <= self._done]
        for task in ready:
            self._waiting[task.id] = self._pending.pop(task.id)

    def _beat(self) -> Any:
        while self._pending or self._waiting or self._running:
            yield self._env.timeout(self._tick - self._env.now % self._tick)
            self._notify()

    def _execute(self, task: Task) -> Any:
        start = self._env.now
        devices = tuple(self._free[: task.devices])
        del self._free[: task.devices]
        yield self._env.timeout(self._overhead + self._seconds(task))
        self._free = sorted((*self._free, *devices))
        self._slots[task.pool] += task.slots
        del self._running[task.id]
        self._done.add(task.id)
        self.spans.append(Span(task, start, self._env.now, devices))
        self._notify()

    def _seconds(self, task: Task) -> float:
        """The step's own seconds; with shared work, from the moment that this is done."""
        duration = task.duration
        if duration.shared is None:
            return duration.seconds
        ready = self._shared.setdefault(duration.shared, self._env.now + duration.shared_s)
        return max(0.0, ready - self._env.now) + duration.seconds

    def _notify(self) -> None:
        if not self._changed.triggered:
            self._changed.succeed()


def host_pools(devices: int, cpu_slots: int) -> dict[str, int]:
    """The pools of a host."""
    return {GPU: devices, CPU: cpu_slots}

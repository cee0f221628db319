"""The probes of a scenario: the baseline listened to on every window of a run, and the sidecars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Scenario
from evpack.data.windows import RunWindows
from evpack.errors import EvidenceError, OutOfMemory, is_machine_fault
from evpack.files import canonical_json
from evpack.guards import probes, variance
from evpack.guards.hooks_records import ActivationRecords
from evpack.steps.base import log
from evpack.steps.guarding import encoded, heard, listener_for
from evpack.steps.subject import Bench


@dataclass(frozen=True)
class Probing:
    """Which sidecars a scenario asks for, and the baseline's side of them by run."""

    files: tuple[str, ...]
    baselines: Mapping[int, ActivationRecords]

    @classmethod
    def prepare(cls, bench: Bench, scenario: Scenario, runs: list[RunWindows]) -> Probing:
        """Listen to the baseline on every window, before the subject takes its place in memory.

        Raises:
            CheckpointError: when the baseline is damaged.
            OutOfMemory: when it does not fit.
        """
        files = probes.wanted(scenario)
        if not files:
            return cls((), {})
        log.info("%s: the baseline is listened to on every window for %s", scenario.id, ", ".join(files))
        model, baselines = bench.load_baseline(), {}
        for run in runs:
            listener = listener_for(run, len(run.in_order()))
            if listener is None:
                raise EvidenceError(f"run {run.run} has no windows", "plan again")
            bench.score(model, run, listener)
            baselines[run.run] = heard(bench, run, listener, bench.baseline, baseline=True)
        return cls(files, baselines)

    def sidecars(
        self,
        run: RunWindows,
        policy: Policy,
        about: Mapping[str, Any],
        hear: Callable[[], ActivationRecords],
        try_scales: Callable[[Mapping[str, float]], variance.Trial | None],
    ) -> dict[str, bytes]:
        """The files beside the report of a run; a probe that cannot run says so and is not triggered."""
        found: dict[str, bytes] = {}
        for file in self.files:
            try:
                now, before = (probes.read_by(self.files, side) for side in (hear(), self.baselines[run.run]))
                document = probes.probe(file, about, policy, now, before, try_scales)
                found |= {probes.SUBJECT_FILE: encoded(now), probes.BASELINE_FILE: encoded(before)}
            except (OSError, MemoryError, OutOfMemory):
                raise
            except Exception as error:
                if is_machine_fault(error):
                    raise
                document = probes.failed(file, about, f"{type(error).__name__}: {error}")
            log.info("probe %s: %s, triggered %s", file, document["status"], document["triggered"])
            found[file] = canonical_json(document)
        return found

"""The subject of an evaluation, which may be at fault: loaded, scored, looked at; what goes wrong is written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Scenario
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.profile import open_baseline
from evpack.checkpoint.reader import contents_of
from evpack.data.windows import RunWindows
from evpack.errors import CheckpointError, EvpackError, is_machine_fault
from evpack.evaluation.overhead import Overhead
from evpack.evaluation.records import Compute, WindowRecords
from evpack.guards import chain, invariants, invariants_assess
from evpack.guards.base import GuardResult
from evpack.guards.hooks import Listener
from evpack.steps.base import log
from evpack.steps.subject import Bench, Scores


@dataclass(frozen=True)
class Case:
    """What a subject is judged by."""

    scenario: Scenario
    policy: Policy
    order: tuple[str, ...]
    declaration: chain.Declaration
    noop_shift: float
    """Of the model's calibration."""
    overhead: Overhead | None
    """Of the same, where the policy asks for it."""
    preset: Path
    """The model's, or its variant for a clean edit of this type."""

    @property
    def sampled(self) -> int:
        """Windows per run on which guards listen."""
        return chain.sampled_windows(self.order, self.policy)


@dataclass
class Subject:
    """The subject while it is evaluated: its model when it could be loaded, else why not."""

    checkpoint: DeltaCheckpoint
    model: Any = None
    unexplained: tuple[str, ...] = ()
    failure: str | None = None

    @classmethod
    def load(cls, bench: Bench, scenario: str, paired: Compute) -> Subject:
        """Load the subject; what stops it from being a sound model is written down, not raised.

        Args:
            paired: how the baseline was scored; losses computed in another way would not pair.

        Raises:
            CheckpointError: when it is the files of baseline or variant that are damaged.
            OutOfMemory: when it does not fit.
        """
        subject = cls(DeltaCheckpoint(bench.baseline, bench.place.variant(scenario)))
        try:
            model, loading = bench.load(subject.checkpoint)
        except Exception as error:
            subject.failure = subject.blame(bench, "load_failed", error)
            return subject
        subject.unexplained = loading.unexplained
        if loading.unexplained:  # parameters left to chance: their losses would be no property of the subject
            subject.failure = f"unexplained_keys:{len(loading.unexplained)}"
        elif subject.checkpoint.variant.config_overrides and (own := bench.contract(model)) != paired:
            subject.failure = f"scored_in_another_way: attention {own.attention}, the baseline's {paired.attention}"
        else:
            subject.model = model
        return subject

    def score(
        self, bench: Bench, run: RunWindows, compute: Compute, scenario: str, listener: Listener | None
    ) -> WindowRecords:
        """The subject's records of one run; all null with the reason when it cannot be run.

        Raises:
            CheckpointError, OutOfMemory: as `load`.
        """
        failure = self.failure or self._unknown_tokens(bench, run)
        scores = Scores([math.nan] * len(run.in_order()))
        if self.model is not None and failure is None:
            try:
                scores = bench.score(self.model, run, listener)
            except Exception as error:
                failure = self.blame(bench, "forward_failed", error)
        return bench.records(run, scores, compute, self.checkpoint.digest(), scenario, failure)

    def _unknown_tokens(self, bench: Bench, run: RunWindows) -> str | None:
        """Why the windows cannot be put to the subject: an accelerator would fail on a row that is not there."""
        if self.model is None:
            return None
        rows = int(self.model.get_input_embeddings().weight.shape[0])
        largest = int(bench.windows.run_tokens(run).max())
        return f"vocabulary_too_small: token {largest}, {rows} embedding rows" if largest >= rows else None

    def blame(self, bench: Bench, what: str, error: Exception) -> str:
        """The reason to write down when the subject is at fault: its files are intact, yet it cannot be run.

        Raises:
            CheckpointError: when it is the files of baseline or variant that are damaged.
            Exception: the error itself, when it is the machine's or the system's.
        """
        known = isinstance(error, EvpackError) and not isinstance(error, CheckpointError)
        if known or is_machine_fault(error) or (isinstance(error, OSError) and error.errno is not None):
            raise error
        open_baseline(bench.place)
        for name in self.checkpoint.names():
            self.checkpoint.read(name)  # checked against its digest
        line = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        log.warning("subject at fault, %s: %s", what, line)
        return f"{what}:{type(error).__name__}: {line}"

    def invariants(self, bench: Bench) -> tuple[GuardResult, GuardResult]:
        """The invariants guard before and after the change.

        Raises:
            EvpackError, OSError, MemoryError: damaged files and missing memory are no findings about the subject.
        """
        baseline = contents_of(bench.baseline)
        try:
            post = invariants.validate(
                self.checkpoint,
                baseline,
                self.checkpoint.variant.declaration,
                unexplained_keys=self.unexplained,
                load_error=None if self.unexplained else self.failure,
            )
        except (EvpackError, OSError, MemoryError):
            raise
        except Exception as error:
            if is_machine_fault(error):
                raise
            post = invariants_assess.failed(f"{type(error).__name__}: {error}")
        return invariants_assess.reference_result(baseline), post

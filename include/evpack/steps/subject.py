"""What calibrate and evaluate share: load one model, score it on runs, keep what an earlier attempt finished."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evpack.checkpoint.loading import LoadingReport, load_model
from evpack.checkpoint.profile import main_dtype, open_baseline
from evpack.checkpoint.reader import Checkpoint, CheckpointLike
from evpack.data.windows import RunWindows, WindowSet, window_digest
from evpack.errors import BrokenContract, CheckpointError, EvidenceError
from evpack.evaluation.noop import NOOP_FILE, noop_shift
from evpack.evaluation.overhead import BARE_FILE, Overhead
from evpack.evaluation.records import Compute, WindowRecords
from evpack.evaluation.scoring import (
    Placement,
    contract_of,
    memory_errors,
    prepare_process,
    score_windows,
    versions,
    window_losses,
)
from evpack.files import pretty_json
from evpack.guards.hooks import Listener
from evpack.pack import layout
from evpack.plan.model import ModelPlan
from evpack.rundir import ModelDir
from evpack.steps.base import StepContext, log


class Scores(NamedTuple):
    """What a model makes of a run's windows, in schedule order."""

    sums: Sequence[float]
    """Sums of negative log-likelihoods, nats."""
    correct: Sequence[int] = ()
    """Tokens that the model held most likely; empty where none were counted."""


@dataclass(frozen=True)
class Bench:
    """One model's place in the campaign and how its subjects are scored."""

    plan: ModelPlan
    place: ModelDir
    baseline: Checkpoint
    windows: WindowSet
    where: Placement
    batch: int
    accuracy: bool
    """Whether right predictions are counted."""

    @classmethod
    def set_up(cls, ctx: StepContext) -> Bench:
        """Open baseline and windows of the step's model; set threads and determinism of this process.

        Raises:
            CheckpointError: when the baseline is damaged.
            DataError: when the windows are.
        """
        model, place = model_of(ctx)
        prepare_process(
            ctx.settings.determinism, ctx.settings.cuda_memory_fraction, flash=not ctx.settings.skip_flash_attn
        )
        baseline = open_baseline(place)
        devices = 0 if ctx.leased.simulated else model.devices
        where = Placement.choose(devices, main_dtype(baseline), ctx.settings.cuda_memory_fraction)
        windows, batch = WindowSet.load(place.windows), ctx.batch or model.batch
        return cls(model, place, baseline, windows, where, batch, ctx.settings.accuracy)

    def load(self, checkpoint: CheckpointLike) -> tuple[Any, LoadingReport]:
        """Build the model of a checkpoint where the plan wants it.

        Raises:
            OutOfMemory: when it does not fit.
        """
        with memory_errors(self.batch):
            return load_model(checkpoint, self.where.dtype, self.where.device, memory=self.where.memory)

    def load_baseline(self) -> Any:
        """The baseline's model.

        Raises:
            CheckpointError: when loading it leaves a parameter to chance.
            OutOfMemory: when it does not fit.
        """
        model, loading = self.load(self.baseline)
        if loading.unexplained:
            raise CheckpointError(
                f"baseline {self.plan.id} does not load cleanly: {loading.unexplained[0]} "
                f"({len(loading.unexplained)} such keys)",
                "give a complete checkpoint of this architecture",
            )
        return model

    def score(self, model: Any, run: RunWindows, listener: Listener | None = None) -> Scores:
        """Put a run's windows to a model; guards may listen."""
        correct: list[int] | None = [] if self.accuracy else None
        with listener.attached(model) if listener else nullcontext():
            sums = score_windows(model, self.windows.run_tokens(run), self.batch, self.windows.predicted, correct)
        return Scores(sums, correct or ())

    def contract(self, model: Any) -> Compute:
        """The compute contract of a loaded model."""
        return contract_of(model, self.batch)

    def expects(self, compute: Compute) -> bool:
        """Whether losses computed that way are what this process would compute, as far as is known before loading."""
        mine = (self.where.label, self.where.dtype_name, self.batch)
        return (compute.device, compute.dtype, compute.batch) == mine

    def records(
        self,
        run: RunWindows,
        scores: Scores,
        compute: Compute,
        checkpoint_digest: str,
        scenario: str | None = None,
        failure: str | None = None,
    ) -> WindowRecords:
        """The raw numbers of one run; without a scenario, of the baseline."""
        keys = [(i, arm, window_digest(self.windows.tokens[i])) for i, arm in run.in_order()]
        return WindowRecords(
            model=self.plan.name,
            side="baseline" if scenario is None else "subject",
            scenario=scenario,
            run=run.run,
            seed=run.seed,
            windows_digest=self.windows.run_digest(run),
            checkpoint_digest=checkpoint_digest,
            compute=compute,
            versions=versions(),
            windows=window_losses(keys, scores.sums, self.windows.predicted, correct=scores.correct, failure=failure),
        )

    def found_records(self, file: Path, run: RunWindows, checkpoint_digest: str) -> WindowRecords | None:
        """Records on disk when they are of this run's windows and this checkpoint, else None."""
        try:
            found = WindowRecords.parse(file.read_bytes(), str(file))
        except (OSError, EvidenceError):
            return None
        same = (self.windows.run_digest(run), checkpoint_digest)
        return found if (found.windows_digest, found.checkpoint_digest) == same else None


def model_of(ctx: StepContext) -> tuple[ModelPlan, ModelDir]:
    """The model of a model step and its place in the run directory."""
    if ctx.step.model is None:
        raise BrokenContract(f"step {ctx.step.id} has no model")
    model = ctx.plan.model(ctx.step.model)
    return model, ctx.run.model(model.name)


def measured_noop_shift(place: ModelDir) -> float:
    """Shift of the model's no-op, nats per predicted token, as calibration left its records.

    Raises:
        EvidenceError: when they are missing, damaged or do not pair.
    """
    noop = _parsed(place.calibration / NOOP_FILE)
    return noop_shift(noop, _parsed(place.calibration / f"run_{noop.run}" / layout.RECORDS))


def measured_overhead(place: ModelDir) -> Overhead:
    """What the guards' listening does to the baseline's loss, as calibration left its records.

    Raises:
        EvidenceError: when they are missing, damaged or do not belong together.
    """
    bare = _parsed(place.calibration / BARE_FILE)
    return Overhead.of(_parsed(place.calibration / f"run_{bare.run}" / "records.json"), bare)


def _parsed(file: Path) -> WindowRecords:
    try:
        return WindowRecords.parse(file.read_bytes(), str(file))
    except OSError as error:
        raise EvidenceError(f"{file} cannot be read: {error.strerror}", "redo calibrate") from error


def records_bytes(records: WindowRecords) -> bytes:
    """The content of records.json."""
    return pretty_json(records.to_json())


def set_aside(ctx: StepContext, path: Path) -> None:
    """Move what an unfinished attempt left, and nothing vouches for, below archive/."""
    log.info("%s is left over and moves to archive/", path.relative_to(ctx.run.root))
    target = ctx.run.archive / ctx.step.id / f"stale-{uuid.uuid4().hex[:8]}"
    target.mkdir(parents=True)
    shutil.move(path, target / path.name)

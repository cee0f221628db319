"""The baseline's side of an evaluation: losses and activations of calibration, scored again where they do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evpack.data.windows import RunWindows
from evpack.evaluation.records import WindowRecords
from evpack.pack import layout
from evpack.steps.base import log
from evpack.steps.guarding import encoded, found_activations, heard, listener_for
from evpack.steps.subject import Bench, records_bytes


@dataclass(frozen=True)
class BaselineSide:
    """What one run of a subject pairs with."""

    records: WindowRecords
    data: bytes
    """Content of the file of its losses."""
    activations: bytes | None
    """Content of its activation records, None when no guard of the order needs them."""
    place: Path
    """Directory of its files, relative to the model's directory."""
    rescored: bool
    """Whether its files belong beside the report."""

    @property
    def records_path(self) -> Path:
        """Where its losses stand, relative to the model's directory."""
        return self.place / (layout.BASELINE_RECORDS if self.rescored else layout.RECORDS)

    @property
    def activations_path(self) -> Path:
        """Where its activation records stand, relative to the model's directory."""
        return self.place / (layout.BASELINE_ACTIVATIONS if self.rescored else layout.ACTIVATIONS)

    def files(self) -> dict[str, bytes]:
        """What belongs beside the report, by name."""
        if not self.rescored:
            return {}
        activations = {} if self.activations is None else {layout.BASELINE_ACTIVATIONS: self.activations}
        return {layout.BASELINE_RECORDS: self.data, **activations}


def baseline_sides(bench: Bench, runs: dict[RunWindows, Path], sampled: int) -> dict[int, BaselineSide]:
    """The baseline's side of each run: calibration's where it scored the same way, else scored now and once.

    Args:
        runs: report directory of each run.
        sampled: windows per run on which guards listen.

    Raises:
        CheckpointError: when the baseline has to be loaded and is damaged.
        OutOfMemory: when it does not fit.
    """
    found: dict[int, BaselineSide] = {}
    model = None
    for run, target in runs.items():
        side = _calibrated(bench, run, sampled)
        if side is None:
            log.info("run %d: calibration scored in another way; the baseline is scored again", run.run)
            model = bench.load_baseline() if model is None else model
            listener = listener_for(run, sampled)
            scores = bench.score(model, run, listener)
            records = bench.records(run, scores, bench.contract(model), bench.baseline.digest())
            activations = encoded(heard(bench, run, listener, bench.baseline, baseline=True)) if listener else None
            place = target.relative_to(bench.place.root)
            side = BaselineSide(records, records_bytes(records), activations, place, rescored=True)
        found[run.run] = side
    return found


def _calibrated(bench: Bench, run: RunWindows, sampled: int) -> BaselineSide | None:
    place = bench.place.calibration / f"run_{run.run}"
    records = bench.found_records(place / layout.RECORDS, run, bench.baseline.digest())
    activations = found_activations(bench, place / layout.ACTIVATIONS, run, sampled) if sampled else None
    if records is None or not bench.expects(records.compute) or (sampled and activations is None):
        return None
    data = (place / layout.RECORDS).read_bytes()
    return BaselineSide(records, data, activations, place.relative_to(bench.place.root), rescored=False)

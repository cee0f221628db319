"""The guards' side of calibrate and evaluate: measuring, keeping the raw figures, pairing them with the baseline's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Category, Scenario
from evpack.checkpoint.reader import CheckpointLike
from evpack.data.windows import RunWindows
from evpack.errors import EvidenceError
from evpack.files import canonical_json, sha256_bytes
from evpack.guards import chain, rmt, spectral, variance
from evpack.guards.hooks import CONTRACT, Listener
from evpack.guards.hooks_records import ActivationRecords, evenly_spaced
from evpack.guards.spectral_measure import measure_baseline, measure_subject
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import layout
from evpack.rundir import ModelDir
from evpack.steps.base import StepContext
from evpack.steps.subject import Bench


def encoded(records: SpectralRecords | ActivationRecords) -> bytes:
    """The content of a file of raw figures."""
    return canonical_json(records.to_json())


def baseline_spectral_file(place: ModelDir) -> Path:
    """Figures of the baseline's matrices, once per model."""
    return place.calibration / layout.SPECTRAL


def calibrated_spectral(bench: Bench, policy: Policy) -> bytes:
    """Figures of the baseline's matrices: those on disk when they are of this baseline, else measured now."""
    file = baseline_spectral_file(bench.place)
    try:
        data = file.read_bytes()
        if SpectralRecords.parse(data, str(file)).checkpoint_digest == bench.baseline.digest():
            return data
    except (OSError, EvidenceError):
        pass
    return encoded(measure_baseline(bench.baseline, policy))


def listener_for(run: RunWindows, count: int) -> Listener | None:
    """Who listens to the scoring of a run: to `count` of its windows, spread evenly; None when nobody needs to."""
    return Listener(evenly_spaced(len(run.in_order()), count)) if count > 0 else None


def heard(
    bench: Bench, run: RunWindows, listener: Listener, checkpoint: CheckpointLike, *, baseline: bool
) -> ActivationRecords:
    """What a listener heard, as records.

    Raises:
        EvaluationError: when listening went wrong.
    """
    ids = [window for window, _ in run.in_order()]
    return ActivationRecords(
        side="baseline" if baseline else "subject",
        run=run.run,
        windows_digest=bench.windows.run_digest(run),
        checkpoint_digest=checkpoint.digest(),
        windows=tuple(ids[position] for position in listener.positions),
        contract=CONTRACT,
        modules=listener.modules(),
    )


def found_activations(bench: Bench, file: Path, run: RunWindows, count: int) -> bytes | None:
    """Baseline activations on disk when they are of this run's sampled windows, else None."""
    ids = [window for window, _ in run.in_order()]
    wanted = tuple(ids[position] for position in evenly_spaced(len(ids), count))
    try:
        data = file.read_bytes()
        found = ActivationRecords.parse(data, str(file))
    except (OSError, EvidenceError):
        return None
    same = (found.windows_digest, found.checkpoint_digest, found.windows, found.contract)
    return data if same == (bench.windows.run_digest(run), bench.baseline.digest(), wanted, CONTRACT) else None


def declaration_of(ctx: StepContext, bench: Bench, scenario: Scenario) -> chain.Declaration:
    """What the plan's edit of this scenario means to change."""
    edit = ctx.plan.edits(bench.plan.name).get(scenario.id)
    return chain.Declaration.of(edit, bench.baseline, clean=scenario.category is Category.CLEAN)


@dataclass
class Evidence:
    """Blocks of the guards and the files that they follow from, of one report."""

    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Beside the report, by name."""

    def with_weights(self, weights: Evidence) -> Evidence:
        """Evidence of one report and what all reports of the subject share."""
        return Evidence({**weights.blocks, **self.blocks}, {**weights.files, **self.files})


def weigh(
    ctx: StepContext, bench: Bench, policy: Policy, subject: CheckpointLike, declaration: chain.Declaration
) -> Evidence:
    """The spectral guard: once per subject, from stored tensors.

    Raises:
        CheckpointError: when a file is damaged.
    """
    evidence = Evidence()
    file = baseline_spectral_file(bench.place)

    def work() -> dict[str, Any]:
        if not file.is_file():
            raise EvidenceError(f"{file.relative_to(ctx.run.root)} is missing", "redo calibrate")
        data = file.read_bytes()
        baseline = SpectralRecords.parse(data, file.name)
        records = measure_subject(subject, bench.baseline, policy)
        evidence.files[layout.SPECTRAL] = encoded(records)
        return chain.spectral_block(records, baseline, policy, declaration) | {
            "records": _places(evidence.files, layout.SPECTRAL, file.relative_to(bench.place.root), data)
        }

    evidence.blocks[spectral.NAME] = chain.guarded(spectral.NAME, work)
    return evidence


def listen(
    order: Sequence[str],
    policy: Policy,
    declaration: chain.Declaration,
    hear: Callable[[], ActivationRecords],
    baseline: bytes,
    baseline_path: Path,
    try_scales: Callable[[Mapping[str, float]], variance.Trial | None],
) -> Evidence:
    """The RMT and variance guards of one report, where the order names them.

    Args:
        hear: the subject's activations on the sampled windows; raises where there are none.
        baseline: content of the baseline's activation records.
        baseline_path: where they stand, relative to the model's directory.
        try_scales: scores the subject with scales applied.
    """
    evidence = Evidence()
    works: dict[str, Callable[[ActivationRecords, ActivationRecords], dict[str, Any]]] = {
        rmt.NAME: lambda now, before: chain.rmt_block(now, before, policy, declaration),
        variance.NAME: lambda now, before: chain.variance_block(now, before, policy, try_scales),
    }
    for name in works.keys() & set(order):

        def work(name: str = name) -> dict[str, Any]:
            records = hear()
            evidence.files[layout.ACTIVATIONS] = encoded(records)
            block = works[name](records, ActivationRecords.parse(baseline, baseline_path.name))
            return block | {"records": _places(evidence.files, layout.ACTIVATIONS, baseline_path, baseline)}

        evidence.blocks[name] = chain.guarded(name, work)
    return evidence


def subset(records: ActivationRecords, windows: Sequence[int]) -> ActivationRecords:
    """The same records on some of their windows."""
    keep = [records.windows.index(window) for window in windows]
    modules = {
        name: module.model_copy(
            update={
                "edge_risk": tuple(module.edge_risk[i] for i in keep),
                "mean_square": tuple(module.mean_square[i] for i in keep),
            }
        )
        for name, module in records.modules.items()
    }
    return records.model_copy(update={"windows": tuple(windows), "modules": modules})


def _places(files: Mapping[str, bytes], own: str, path: Path, baseline: bytes) -> dict[str, Any]:
    return {
        "subject": {"path": own, "sha256": sha256_bytes(files[own])},
        "baseline": {"path": path.as_posix(), "sha256": sha256_bytes(baseline)},
    }

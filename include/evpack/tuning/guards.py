"""The guards' part of a trial: a campaign lets a clean edit pass only where they stay quiet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.policy import Policy
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.errors import EvaluationError
from evpack.guards import chain, rmt, spectral
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_measure import measure_baseline, measure_subject
from evpack.guards.spectral_records import SpectralRecords
from evpack.steps.guarding import heard, listener_for
from evpack.steps.subject import Bench


@dataclass(frozen=True)
class Guards:
    """The guards of an order that can fail a clean edit, with their figures of the baseline."""

    policy: Policy
    matrices: SpectralRecords | None
    """None where the order has no spectral guard."""
    activations: ActivationRecords | None
    """On windows of the first run; None where the order has no RMT guard."""

    @classmethod
    def of_baseline(cls, bench: Bench, model: Any, order: Sequence[str], policy: Policy) -> Guards:
        """Measure the baseline.

        Args:
            model: the baseline's.
            order: guards in the order of the campaign.
        """
        matrices = measure_baseline(bench.baseline, policy) if spectral.NAME in order else None
        activations = _listen(bench, model, bench.baseline, policy) if rmt.NAME in order else None
        return cls(policy, matrices, activations)

    def flagged(self, bench: Bench, model: Any, variant: DeltaCheckpoint, edit: ResolvedEdit) -> str:
        """What the first guard that fails says of a variant, empty where all stay quiet."""
        for name, block in self._blocks(bench, model, variant, edit):
            if block["status"] == "fail":
                return f"guard {name}: {block['failures'][0]['message']}"
        return ""

    def _blocks(
        self, bench: Bench, model: Any, variant: DeltaCheckpoint, edit: ResolvedEdit
    ) -> Iterator[tuple[str, chain.Block]]:
        declared = chain.Declaration.of(edit, bench.baseline, clean=True)
        if self.matrices is not None:
            now = measure_subject(variant, bench.baseline, self.policy)
            yield spectral.NAME, chain.spectral_block(now, self.matrices, self.policy, declared)
        if self.activations is not None:
            listened = _listen(bench, model, variant, self.policy)
            yield rmt.NAME, chain.rmt_block(listened, self.activations, self.policy, declared)


def _listen(bench: Bench, model: Any, checkpoint: CheckpointLike, policy: Policy) -> ActivationRecords:
    """Activations on the sampled windows of the first run, which is scored once more for it."""
    run = bench.windows.runs[0]
    listener = listener_for(run, chain.sampled_windows((rmt.NAME,), policy))
    if listener is None:
        raise EvaluationError("the policy lets the RMT guard listen to no window")
    bench.score(model, run, listener)
    return heard(bench, run, listener, checkpoint, baseline=checkpoint is bench.baseline)

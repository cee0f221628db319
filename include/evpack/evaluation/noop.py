"""How far the mean log-loss moves when nothing that matters changes: the baseline with half a bf16 ulp of noise.

Calibration scores such a no-op once per model. A shift of a subject counts as detected beyond the larger of the
policy's band and of the no-op's own shift, so that a model that is sensitive to rounding raises no signal by it.
"""

from __future__ import annotations

from evpack.errors import EvidenceError
from evpack.evaluation.assess import paired_differences
from evpack.evaluation.interval import paired_t_interval
from evpack.evaluation.records import WindowRecords
from evpack.files import digest_json

NOOP_FILE = "noop_records.json"
"""Losses of the no-op on the windows of the first run, beside the calibration runs."""
NOOP_SCENARIO = "half_ulp_noise"
NOOP_SEED = 20260
"""Of the coins that the noise is drawn with."""


def noop_digest(baseline: str) -> str:
    """What stands for the checkpoint digest of the no-op on a baseline, which is never written to disk."""
    return digest_json({"baseline": baseline, "noise": NOOP_SCENARIO, "seed": NOOP_SEED})


def noop_shift(noop: WindowRecords, baseline: WindowRecords) -> float:
    """Mean paired log-loss difference of the no-op, nats per predicted token.

    Raises:
        EvidenceError: when the two do not pair or a loss is not finite.
    """
    differences, weights = paired_differences(noop, baseline)
    mean = paired_t_interval(differences, weights).mean
    if mean is None or len(differences) < len(baseline.windows):
        raise EvidenceError(
            f"the no-op of {baseline.model} gives no finite shift: {len(differences)} of {len(baseline.windows)} "
            "windows pair",
            "redo calibrate",
        )
    return mean

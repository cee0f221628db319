"""calibrate: score the untouched baseline on every scheduled run, with one model load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from evpack.errors import EvaluationError
from evpack.evaluation.records import ARMS, Arm, WindowRecords
from evpack.files import publishing, sha256_bytes, write_atomic, write_json
from evpack.steps.base import StepContext, log
from evpack.steps.subject import Bench, records_bytes, set_aside

BASELINE_REPORT_SCHEMA = "evpack_baseline_report_v1"


def calibrate(ctx: StepContext) -> list[Path]:
    """Publish ``reports/calibration/run_<k>`` with records.json and baseline_report.json for each scheduled run.

    All scheduled runs are scored, also those beyond the number of calibration runs: evaluation run k pairs with run k.
    A run that an earlier attempt finished under the same contract is kept.

    Raises:
        CheckpointError: when the baseline is damaged or does not load cleanly.
        EvaluationError: when the baseline's own loss is not finite.
        OutOfMemory: when model or batch do not fit.
    """
    bench = Bench.set_up(ctx)
    model = bench.load_baseline()
    compute, digest = bench.contract(model), bench.baseline.digest()
    published = []
    for run in bench.windows.runs:
        target = bench.place.calibration / f"run_{run.run}"
        published.append(target)
        if target.exists():
            found = bench.found_records(target / "records.json", run, digest)
            if found is not None and found.compute == compute and (target / "baseline_report.json").is_file():
                log.info("calibration run %d is there already", run.run)
                continue
            set_aside(ctx, target)
        records = bench.records(run, bench.score(model, run), compute, digest)
        report = _report(ctx, bench, records)
        with publishing(target, str(ctx.attempt)) as part:
            write_atomic(part / "records.json", records_bytes(records))
            write_json(part / "baseline_report.json", report)
        log.info("calibration run %d: perplexity %.4f / %.4f", run.run, *(report["primary_metric"][a] for a in ARMS))
    return published


def _report(ctx: StepContext, bench: Bench, records: WindowRecords) -> dict[str, Any]:
    losses = {arm: _mean_loss(records, arm) for arm in ARMS}
    return {
        "schema": BASELINE_REPORT_SCHEMA,
        "meta": {
            "model_id": bench.plan.id,
            "model_name": bench.plan.name,
            "run": records.run,
            "seed": records.seed,
            "tier": ctx.settings.tier,
            "profile": ctx.settings.profile,
        },
        "primary_metric": {
            "kind": "ppl_causal",
            **{arm: math.exp(loss) for arm, loss in losses.items()},
            "drift": math.exp(losses["final"] - losses["preview"]),
        },
        "dataset": {
            "provider": bench.windows.provider,
            "tokenizer_sha256": bench.windows.tokenizer_digest,
            "seq_len": bench.windows.seq_len,
            "stride": bench.windows.seq_len,
            "windows": {arm: len(records.arm(arm)) for arm in ARMS},
            "windows_digest": records.windows_digest,
        },
        "compute": records.compute.model_dump(),
        "checkpoint_digest": records.checkpoint_digest,
        "records": {"path": "records.json", "sha256": sha256_bytes(records_bytes(records))},
    }


def _mean_loss(records: WindowRecords, arm: Arm) -> float:
    """Nats per predicted token over an arm.

    Raises:
        EvaluationError: when a loss is not finite.
    """
    total: list[float] = []
    for window in records.arm(arm):
        if window.nll_sum is None:
            raise EvaluationError(
                f"baseline loss of window {window.id} is not finite ({window.reason})",
                "nothing can be compared with this baseline; give a healthy one or another compute type",
            )
        total.append(window.nll_sum)
    return math.fsum(total) / sum(window.predicted_tokens for window in records.arm(arm))

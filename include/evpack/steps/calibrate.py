"""calibrate: score the untouched baseline on every scheduled run, with one model load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from evpack.catalog.floors import Arm
from evpack.catalog.policy import Policy
from evpack.errors import EvaluationError
from evpack.evaluation.half_ulp import add_half_ulp
from evpack.evaluation.noop import NOOP_FILE, NOOP_SCENARIO, noop_digest
from evpack.evaluation.overhead import BARE_FILE, asked_for
from evpack.evaluation.records import ARMS, Compute, WindowRecords
from evpack.files import sha256_bytes, write_json
from evpack.guards import chain, spectral
from evpack.pack import layout
from evpack.publishing import publishing, write_atomic
from evpack.steps.base import StepContext, log
from evpack.steps.guarding import (
    baseline_spectral_file,
    calibrated_spectral,
    encoded,
    found_activations,
    heard,
    listener_for,
)
from evpack.steps.subject import Bench, records_bytes, set_aside

BASELINE_REPORT_SCHEMA = "evpack_baseline_report_v1"


def calibrate(ctx: StepContext) -> list[Path]:
    """Publish ``reports/calibration/run_<k>`` with records.json and baseline_report.json for each scheduled run.

    Where guards of the order need them, also the figures they compare with: activation_records.json of each run and
    ``reports/calibration/spectral_records.json``. Where the policy asks what guarding does to the loss, the first run
    is scored once more without it. Last a no-op is scored on the first run's windows.
    All scheduled runs are scored, also those beyond the number of calibration runs: evaluation run k pairs with run k.
    A run that an earlier attempt finished under the same contract is kept.

    Raises:
        CheckpointError: when the baseline is damaged or does not load cleanly.
        EvaluationError: when the baseline's own loss is not finite.
        OutOfMemory: when model or batch do not fit.
    """
    bench = Bench.set_up(ctx)
    policy = Policy.parse(ctx.run.policy.read_bytes(), str(ctx.run.policy))
    published = _spectral(bench, policy) if spectral.NAME in ctx.settings.guards_order else []
    model = bench.load_baseline()
    compute, digest = bench.contract(model), bench.baseline.digest()
    sampled = chain.sampled_windows(ctx.settings.guards_order, policy)
    for run in bench.windows.runs:
        target = bench.place.calibration / f"run_{run.run}"
        published.append(target)
        if target.exists():
            found = bench.found_records(target / layout.RECORDS, run, digest)
            heard_too = not sampled or found_activations(bench, target / layout.ACTIVATIONS, run, sampled) is not None
            complete = heard_too and (target / layout.BASELINE_REPORT).is_file()
            if found is not None and found.compute == compute and complete:
                log.info("calibration run %d is there already", run.run)
                continue
            set_aside(ctx, target)
        listener = listener_for(run, sampled)
        records = bench.records(run, bench.score(model, run, listener), compute, digest)
        report = _report(ctx, bench, records)
        with publishing(target, str(ctx.attempt)) as part:
            write_atomic(part / layout.RECORDS, records_bytes(records))
            write_json(part / layout.BASELINE_REPORT, report)
            if listener is not None:
                activations = heard(bench, run, listener, bench.baseline, baseline=True)
                write_atomic(part / layout.ACTIVATIONS, encoded(activations))
        log.info("calibration run %d: perplexity %.4f / %.4f", run.run, *(report["primary_metric"][a] for a in ARMS))
    if asked_for(policy):
        published.append(_bare(bench, model, compute))
    return [*published, _noop(bench, model, compute)]


def _bare(bench: Bench, model: Any, compute: Compute) -> Path:
    """Losses of the baseline on the first run with nobody listening."""
    file, run, digest = bench.place.calibration / BARE_FILE, bench.windows.runs[0], bench.baseline.digest()
    found = bench.found_records(file, run, digest)
    if found is None or found.compute != compute:
        write_atomic(file, records_bytes(bench.records(run, bench.score(model, run), compute, digest)))
    return file


def _noop(bench: Bench, model: Any, compute: Compute) -> Path:
    """Losses of the baseline with noise that means nothing; the model is of no further use afterwards."""
    file, run, digest = bench.place.calibration / NOOP_FILE, bench.windows.runs[0], noop_digest(bench.baseline.digest())
    found = bench.found_records(file, run, digest)
    if found is None or found.compute != compute:
        add_half_ulp(model)
        records = bench.records(run, bench.score(model, run), compute, digest, NOOP_SCENARIO)
        write_atomic(file, records_bytes(records))
    return file


def _spectral(bench: Bench, policy: Policy) -> list[Path]:
    file = baseline_spectral_file(bench.place)
    write_atomic(file, calibrated_spectral(bench, policy))
    return [file]


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
            "stride": bench.windows.stride,
            "windows": {arm: len(records.arm(arm)) for arm in ARMS},
            "windows_digest": records.windows_digest,
        },
        "compute": records.compute.model_dump(),
        "checkpoint_digest": records.checkpoint_digest,
        "records": {"path": layout.RECORDS, "sha256": sha256_bytes(records_bytes(records))},
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

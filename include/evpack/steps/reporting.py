"""The files of one report: the report itself, the losses that it follows from, and what ran where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evpack.errors import EvaluationError
from evpack.evaluation.assess import paired_differences
from evpack.evaluation.bca import bca_interval
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.report import REPORT_NAME, RecordFile, ReportMeta, build_report, provider_digest
from evpack.files import pretty_json, utc_now
from evpack.pack import layout
from evpack.steps.base import StepContext, log
from evpack.steps.pairing import BaselineSide
from evpack.steps.runtime_manifest import runtime_manifest
from evpack.steps.subject import Bench, records_bytes
from evpack.steps.trial import Case, Subject


def report_files(
    ctx: StepContext,
    bench: Bench,
    case: Case,
    subject: Subject,
    records: WindowRecords,
    baseline: BaselineSide,
    blocks: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """Files of a report's directory by name.

    Args:
        records: the subject's losses of one run.
        blocks: of the guards.
        facts: what ran where.

    Raises:
        EvaluationError: when the two sides were computed in different ways.
    """
    if records.compute != baseline.records.compute:
        raise EvaluationError(
            f"subject and baseline of run {records.run} were computed in different ways: {records.compute} and "
            f"{baseline.records.compute}",
            "redo calibrate",
        )
    data, now = records_bytes(records), utc_now()
    report = build_report(
        meta=_meta(ctx, bench, case, records),
        subject=RecordFile(layout.RECORDS, data),
        baseline=RecordFile(baseline.records_path.as_posix(), baseline.data),
        policy=case.policy,
        guards=blocks,
        guards_order=case.order,
        dataset={
            "provider": bench.windows.provider,
            "split": None,
            "seq_len": bench.windows.seq_len,
            "stride": bench.windows.stride,
            "tokens_available": bench.windows.text_tokens,
        },
        provenance={
            **facts,
            "tokenizer_sha256": bench.windows.tokenizer_digest,
            "provider_digest": provider_digest(records.windows_digest, bench.windows.tokenizer_digest),
        },
        edit={"name": case.scenario.id, **subject.checkpoint.variant.metadata},
        generated_at=now,
        bca=_bca(case, records, baseline),
        noop_shift=case.noop_shift,
        overhead=case.overhead,
    )
    metric = report["primary_metric"]
    log.info("%s run %d: %s, ratio %s", case.scenario.id, records.run, metric["outcome"], metric["pooled"]["ratio"])
    report_data = pretty_json(report)
    manifest = runtime_manifest(ctx, facts, report_data, case.preset, now)
    return {REPORT_NAME: report_data, layout.RUNTIME: pretty_json(manifest), layout.RECORDS: data, **baseline.files()}


def _meta(ctx: StepContext, bench: Bench, case: Case, records: WindowRecords) -> ReportMeta:
    return ReportMeta(
        model_id=bench.plan.id,
        model_name=bench.plan.name,
        scenario=case.scenario.id,
        category=case.scenario.category,
        strictness=case.scenario.strictness,
        run=records.run,
        seed=records.seed,
        plan_digest=ctx.plan.digest(),
    )


def _bca(case: Case, records: WindowRecords, baseline: BaselineSide) -> dict[str, Any]:
    differences, weights = paired_differences(records, baseline.records)
    return bca_interval(
        differences,
        weights,
        seed=records.seed,
        replicates=case.policy.replicates,
        alpha=case.policy.number("metrics.bootstrap.alpha"),
    )

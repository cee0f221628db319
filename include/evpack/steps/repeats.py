"""--repeats N: one evaluation of a campaign made again and again, to see whether it gives the same report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evpack.catalog.scenarios import Category
from evpack.errors import DiskFull, OutOfMemory, is_machine_fault
from evpack.evaluation.report import check_report, report_digest
from evpack.files import utc_now, write_json
from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.steps.base import StepContext, log

_STOPS = (DiskFull, OSError, OutOfMemory)
"""Faults of the machine; they end the step, which is tried again."""


def is_repeated(ctx: StepContext) -> bool:
    """Whether this evaluation is the one that PACK_REPEATS repeats."""
    chosen = repeated_step(ctx.plan) if ctx.settings.repeats else None
    return chosen is not None and chosen.id == ctx.step.id


def repeated_step(plan: CampaignPlan) -> StepPlan | None:
    """The evaluation that repeats are made of: the first model's first clean edit, else its first stress edit.

    Edits that the tuned parameters skip do not count. None when the plan has no such evaluation.
    """
    if not plan.models:
        return None
    model = plan.models[0].name
    skipped = {scenario for scenario, edit in plan.edits(model).items() if edit.status == "skipped"}
    steps = [step for step in plan.steps_of(StepType.EVALUATE, model=model) if step.scenario not in skipped]
    for category in (Category.CLEAN, Category.STRESS):
        for step in steps:
            if plan.scenario(str(step.scenario)).category is category:
                return step
    return None


def repeat(ctx: StepContext, published: Path, again: Callable[[], bytes]) -> Path:
    """Evaluate as often as PACK_REPEATS says and write analysis/determinism_repeats.json.

    Args:
        published: the report that the repeats are held against; the first entry of ``cert_hashes``.
        again: makes the report once more, from loading the subject on, and gives its bytes.
    """
    reports = [check_report(published.read_bytes())]
    errors: list[str] = []
    for number in range(1, ctx.settings.repeats + 1):
        try:
            reports.append(check_report(again()))
        except _STOPS:
            raise
        except Exception as error:
            if is_machine_fault(error):
                raise
            errors.append(f"repeat {number}: {type(error).__name__}: {error}")
    hashes = [report_digest(report) for report in reports]
    ratios = [report["primary_metric"]["ratio_vs_baseline"] for report in reports]
    meta = reports[0]["meta"]
    document = {
        "schema": "evpack_determinism_repeats_v1",
        "requested": ctx.settings.repeats,
        "completed": len(reports) - 1,
        "mode": ctx.settings.determinism,
        "suite": ctx.plan.suite,
        "model_id": meta["model_id"],
        "edit_name": meta["scenario"],
        "run": meta["run"],
        "cert_hashes_match": not errors and len(set(hashes)) == 1,
        "cert_hashes": hashes,
        "primary_metric_ratio": _spread(ratios),
        "errors": errors,
        "generated_at": utc_now(),
    }
    if not document["cert_hashes_match"]:
        log.warning("%d repeats of %s differ: %s", ctx.settings.repeats, ctx.step.id, errors or sorted(set(hashes)))
    target = ctx.run.analysis / "determinism_repeats.json"
    write_json(target, document)
    return target


def _spread(ratios: list[float | None]) -> dict[str, Any] | None:
    """Smallest and largest ratio and their difference; None when one of them is not finite."""
    finite = [ratio for ratio in ratios if ratio is not None]
    if not finite or len(finite) < len(ratios):
        return None
    return {"min": min(finite), "max": max(finite), "delta": max(finite) - min(finite)}

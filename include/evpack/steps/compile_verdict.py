"""The step that compiles the verdict. Missing evidence never makes it fail: that is the verdict INCOMPLETE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evpack.catalog.policy import Policy
from evpack.errors import BadInput, EvidenceError
from evpack.files import canonical_json, iso_time, read_json, read_regular, utc_now, write_json
from evpack.plan.model import CampaignPlan
from evpack.publishing import write_atomic
from evpack.rundir import RunDir
from evpack.steps.base import StepContext, log
from evpack.verdict.evidence import ReportEvidence, ReportKey, read_evidence
from evpack.verdict.rules import TEXT_NAME, VERDICT_NAME, Verdict, compile_verdict


def compile_verdict_step(ctx: StepContext) -> list[Path]:
    """Write reports/final_verdict.{json,txt} and the four summaries, in place of what an earlier compilation left.

    A verdict that says the same of reports that are all older keeps the time at which it was first compiled: a resume
    that changes nothing leaves the sealed pack as it is.

    Raises:
        BadInput: when state/policy.json is not there.
        EvidenceError: when it is not a policy.
    """
    if not ctx.run.policy.is_file():
        raise BadInput(f"{ctx.run.root} holds no state/policy.json", "give a run directory of a planned campaign")
    policy = Policy.parse(ctx.run.policy.read_bytes(), "state/policy.json")
    evidence = read_run_evidence(ctx.run, ctx.plan)
    verdict = compile_verdict(ctx.plan, evidence, policy, guards_order=ctx.settings.guards_order, timestamp=utc_now())
    before = _compiled_at(ctx.run, verdict)
    if before is not None and all(_made_at(found) <= before for found in evidence.values()):
        verdict = replace(verdict, document={**verdict.document, "timestamp": before})
    documents = {VERDICT_NAME: verdict.to_json(), **verdict.summaries}
    for name, document in documents.items():
        write_json(ctx.run.reports / name, document)
    write_atomic(ctx.run.reports / TEXT_NAME, verdict.text().encode("utf-8"))
    log.info("verdict %s", verdict.word)
    for entry in verdict.document["failed_requirements"]:
        log.info("%s: %s", entry["requirement"], entry["message"])
    return [ctx.run.reports / name for name in (*documents, TEXT_NAME)]


def _compiled_at(run: RunDir, verdict: Verdict) -> str | None:
    """When the standing verdict was compiled, None where there is none, or one that says anything else."""
    try:
        standing = read_json(run.final_verdict)
        time = standing.pop("timestamp")
    except (OSError, EvidenceError, AttributeError, LookupError, TypeError):
        return None
    now = {key: value for key, value in verdict.document.items() if key != "timestamp"}
    same = canonical_json(standing) == canonical_json(now) and iso_time(time) is not None
    return str(time) if same else None


def _made_at(found: ReportEvidence) -> str:
    """When a report was made, UTC; one that cannot be read tells no time, and its absence is in the verdict."""
    return str(found.report["artifacts"]["generated_at"]) if found.report else ""


def read_run_evidence(run: RunDir, plan: CampaignPlan) -> dict[ReportKey, ReportEvidence]:
    """The evidence of a campaign as it lies in its run directory."""

    def read(path: str) -> bytes | None:
        file = run.root / path
        try:
            return read_regular(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, EvidenceError) as error:  # there is something, so it is a problem, not absent
            log.warning("%s cannot be read: %s", file, error)
            return b""

    return read_evidence(plan, read)

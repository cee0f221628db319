"""Does the evidence follow from the records? Pure: files in, differences out. Build and verify both ask here.

For every report the plan expects: it belongs to its place, its records are those whose digests it names, they were
scored on the scheduled windows against one baseline, and metric, interval and gates are what the records give under
the limits. Then the verdict, its text and its summaries are compiled again and compared.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

from evpack.catalog.policy import EvidenceLevel, Policy
from evpack.catalog.scenarios import Category
from evpack.errors import EvpackError, IntegrityError
from evpack.files import Json, canonical_json, iso_time, pretty_json
from evpack.pack import layout
from evpack.pack.evidence import MALFORMED, Campaign, entry, open_campaign, unusual
from evpack.pack.inventory import Files
from evpack.pack.layout import Layout
from evpack.pack.manifest import evidence_level
from evpack.pack.names import strangers
from evpack.pack.profiles import Profile, strictest
from evpack.pack.recheck_model import ModelFacts, check_model
from evpack.pack.recheck_repeats import repeats_problems
from evpack.pack.recheck_report import Judged, judge_again, judge_report, pack_name
from evpack.verdict.evidence import ReportKey, expected_reports
from evpack.verdict.rules import Verdict, compile_outcomes

_PARALLEL_FROM = 64
"""Reports from which on processes are worth their start (about 0.1 s)."""
_CHUNK = 16
"""Reports handed to a process at a time."""


@dataclass(frozen=True)
class Recheck:
    """What recomputing a pack's evidence gave."""

    other_limits: tuple[str, ...]
    """Limits of the campaign that are not the ones to judge by."""
    errors: tuple[str, ...]
    """Everything that does not follow."""
    unmet: tuple[str, ...]
    """What does not meet the profile that the campaign, or the caller, asks for."""
    warnings: tuple[str, ...]
    verdict: str
    """PASS, FAIL or INCOMPLETE, as compiled again under the campaign's own limits."""
    by_limits: str | None
    """The same under the limits to judge by, from reports made again; None where these ask for figures that were not
    measured, or where something does not follow anyway."""
    campaign: Campaign
    reports: int
    """Reports that were recomputed."""
    error_injection_reports: int
    """Those of them about error injections."""
    failed_reports: int
    """Reports that are there but cannot be read, or do not follow from their records."""
    oldest: datetime | None
    """When the oldest evidence was made, at the earliest: baselines carry no time, so it is never after the plan.
    None when any of it does not say so."""
    verified: Mapping[str, bytes]
    """verify.json of every report by its name in the pack."""

    @property
    def level(self) -> EvidenceLevel:
        """The evidence level these files earn."""
        return evidence_level(
            clean_reports=self.reports - self.error_injection_reports,
            failed_reports=self.failed_reports,
            source=self.campaign.has(layout.SOURCE),
            environment=self.campaign.has(layout.ENVIRONMENT),
            cap=self.campaign.policy.evidence_cap,
        )

    def summary(self) -> dict[str, Json]:
        """results/verification_summary.json."""
        return {
            "clean_reports": self.reports - self.error_injection_reports,
            "error_injection_reports": self.error_injection_reports,
            "failed_reports": self.failed_reports,
            "policy_profile": self.campaign.settings.verify_profile,
        }

    @property
    def repeats(self) -> Json:
        """results/determinism_repeats.json, null without it."""
        return self.campaign.document(layout.REPEATS) if self.campaign.has(layout.REPEATS) else None

    def derived(self) -> dict[str, bytes]:
        """Files that say nothing of their own: build writes them, verify compares them."""
        return {layout.VERIFICATION: pretty_json(self.summary()), **self.verified}


def recheck(
    files: Files, where: Layout, limits: Policy | None = None, *, profile: Profile = "dev", jobs: int = 1
) -> Recheck:
    """Recompute the evidence of a pack.

    Args:
        where: the pack's layout.
        limits: what to judge by; None means the installed package's limits for the campaign's tier and profile.
        profile: what reports have to meet, at least what the campaign itself asked for (PACK_VERIFY_PROFILE).
        jobs: processes to use at most.

    Raises:
        EvidenceError: when the frozen inputs cannot be read, so that there is nothing to compare with.
    """
    campaign, errors = open_campaign(files, where, limits)
    reports = expected_reports(campaign.plan)
    there = [key for key, path in reports.items() if pack_name(path) in files]
    facts = {}
    for model in campaign.plan.models:
        with_report = sorted({key.scenario for key in there if key.model == model.name})
        facts[model.name] = check_model(campaign, model, with_report)
        errors += facts[model.name].errors
    asked = strictest(campaign.settings.verify_profile, profile)
    other = campaign.under_limits() if campaign.other_limits else None
    judged = _judge_all(_Work(campaign, facts, asked, other), reports, jobs if len(there) >= _PARALLEL_FROM else 1)
    errors += [text for one in judged for text in one.errors]
    errors += [f"{name}: has no place in a pack of this plan" for name in strangers(campaign)]
    try:
        errors += repeats_problems(campaign)
    except MALFORMED as error:
        errors.append(f"{campaign.at(layout.REPEATS)}: content of an unexpected form ({type(error).__name__}: {error})")
    verdict, stated_at = _compile(campaign, judged)
    errors += _verdict_files(campaign, verdict)
    usable = [one for one in judged if one.usable]
    times = [stated_at, iso_time(campaign.plan.created_at), *(one.made_at for one in usable)]
    return Recheck(
        other_limits=tuple(campaign.other_limits.values()),
        errors=tuple(errors),
        unmet=tuple(text for one in judged for text in one.unmet),
        warnings=(*_unusable(judged), *(text for one in judged for text in one.doubts), *unusual(campaign)),
        verdict=verdict.word,
        by_limits=verdict.word if not campaign.other_limits else None if errors else _by_limits(other, judged),
        campaign=campaign,
        reports=len(usable),
        error_injection_reports=sum(_is_fault(campaign, one.key) for one in usable),
        failed_reports=sum(one.problem is not None or bool(one.errors) for one in judged),
        oldest=min((time for time in times if time), default=None) if all(times) else None,
        verified={
            pack_name(one.outcome.path).removesuffix(layout.REPORT) + layout.VERIFIED: one.verified
            for one in judged
            if one.verified is not None
        },
    )


@dataclass(frozen=True)
class _Work:
    """What judging any report of a campaign needs."""

    campaign: Campaign
    facts: Mapping[str, ModelFacts]
    profile: Profile
    other: Campaign | None
    """The campaign under the limits to judge by, where they are others."""

    def judge(self, key: ReportKey, path: str) -> Judged:
        """One report."""
        facts = self.facts[key.model]
        judged = judge_report(self.campaign, facts, key, path, self.profile)
        if self.other is None or judged.errors:
            return judged
        try:
            return replace(judged, by_limits=judge_again(self.other, facts, key, path))
        except IntegrityError:
            raise
        except (EvpackError, *MALFORMED):
            return judged


def _judge_all(work: _Work, reports: Mapping[ReportKey, str], jobs: int) -> list[Judged]:
    if jobs > 1:
        import numpy  # noqa: F401 - loaded once, shared by the children that will need it

        # forked children read the pack themselves and hand back small outcomes; nothing is pickled on the way in
        context = multiprocessing.get_context("fork")
        try:
            with ProcessPoolExecutor(jobs, mp_context=context, initializer=_share, initargs=(work,)) as pool:
                return list(pool.map(_judge_shared, reports, reports.values(), chunksize=_CHUNK))
        except (OSError, BrokenExecutor):
            pass  # no semaphores, no processes left or one was killed: slower, not weaker
    return [work.judge(key, path) for key, path in reports.items()]


_shared: _Work | None = None


def _share(work: _Work) -> None:
    global _shared
    _shared = work


def _judge_shared(key: ReportKey, path: str) -> Judged:
    assert _shared is not None  # noqa: S101 - set by the pool's initializer
    return _shared.judge(key, path)


def _is_fault(campaign: Campaign, key: ReportKey) -> bool:
    return campaign.plan.scenario(key.scenario).category is Category.ERROR_INJECTION


def _unusable(judged: list[Judged]) -> Iterator[str]:
    for one in judged:
        if one.problem:
            yield f"{one.outcome.path}: not usable, counts as missing: {one.problem}"


def _compile(campaign: Campaign, judged: list[Judged]) -> tuple[Verdict, datetime | None]:
    """The verdict that follows, and when the published one says it was compiled."""
    stated = entry(campaign.document(layout.VERDICT), "timestamp")
    verdict = compile_outcomes(
        campaign.plan,
        {one.key: one.outcome for one in judged},
        campaign.policy,
        guards_order=campaign.settings.guards_order,
        timestamp=str(stated),
    )
    return verdict, iso_time(stated)


def _by_limits(other: Campaign | None, judged: list[Judged]) -> str | None:
    """The verdict under the limits to judge by, None where not every outcome is known."""
    outcomes = {one.key: one.by_limits for one in judged if one.by_limits is not None}
    if other is None or len(outcomes) < len(judged):
        return None
    order = other.settings.guards_order
    return compile_outcomes(other.plan, outcomes, other.policy, guards_order=order, timestamp="").word


def _verdict_files(campaign: Campaign, verdict: Verdict) -> Iterator[str]:
    """The published verdict, its summaries and its text are the ones that follow."""
    if iso_time(stated := verdict.document["timestamp"]) is None:
        yield f"{campaign.at(layout.VERDICT)}: its timestamp {stated!r:.100} is no time in ISO 8601 with a time zone"
    documents: dict[str, Mapping[str, Json]] = {layout.VERDICT: verdict.to_json()}
    documents |= {f"results/{name}": value for name, value in verdict.summaries.items()}
    for name, expected in documents.items():
        if canonical_json(campaign.document(name)) != canonical_json(expected):
            yield f"{campaign.at(name)}: does not follow from the reports (they give {verdict.word})"
    if campaign.read(layout.VERDICT_TEXT) != verdict.text().encode("utf-8"):
        yield f"{campaign.at(layout.VERDICT_TEXT)}: not the text of the verdict"

"""Does the evidence follow from the records? Pure: bytes in, differences out. Build and verify both ask here.

For every report the plan expects: it belongs to its place, its records are those whose digests it names, they were
scored on the scheduled windows against one baseline, and metric, interval and gates are what the records give under
the limits. Then the verdict, its text and its summaries are compiled again and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.scenarios import Category, Manifest
from evpack.catalog.suites import suite
from evpack.errors import BadInput, EvidenceError
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.report import recompute
from evpack.files import Json, canonical_json, digest_json, parse_json, sha256_bytes
from evpack.pack import layout
from evpack.pack.manifest import EvidenceLevel, evidence_level
from evpack.plan.model import CampaignPlan
from evpack.settings import Settings
from evpack.verdict.evidence import ReportEvidence, ReportKey, read_evidence
from evpack.verdict.rules import Verdict, compile_verdict

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Recheck:
    """What recomputing a pack's evidence gave."""

    errors: tuple[str, ...]
    """Everything that does not follow."""
    warnings: tuple[str, ...]
    verdict: str
    """PASS, FAIL or INCOMPLETE, as compiled again."""
    plan: CampaignPlan
    settings: Settings
    policy: Policy
    reports: int
    """Reports that were recomputed."""
    error_injection_reports: int
    """Those of them about error injections."""
    failed_reports: int
    """Reports that are there but cannot be read, or do not follow from their records."""

    def level(self, files: Files) -> EvidenceLevel:
        """The evidence level these files earn."""
        cap: EvidenceLevel = self.policy.evidence_cap  # type: ignore[assignment]  # one of the three, by Policy.parse
        return evidence_level(
            clean_reports=self.reports - self.error_injection_reports,
            failed_reports=self.failed_reports,
            source=layout.SOURCE in files,
            environment=layout.ENVIRONMENT in files,
            cap=cap,
        )

    def summary(self) -> dict[str, Json]:
        """results/verification_summary.json."""
        return {
            "clean_reports": self.reports - self.error_injection_reports,
            "error_injection_reports": self.error_injection_reports,
            "failed_reports": self.failed_reports,
            "policy_profile": self.settings.verify_profile,
        }


@dataclass(frozen=True)
class _Campaign:
    """The frozen inputs of a pack, parsed."""

    plan: CampaignPlan
    settings: Settings
    policy: Policy


def recheck(files: Files, limits: Policy | None = None) -> Recheck:
    """Recompute the evidence of a pack.

    Args:
        files: content by name in the pack.
        limits: what to judge by; None means the installed package's limits for the campaign's tier and profile.

    Raises:
        EvidenceError: when the frozen inputs cannot be read, so that there is nothing to compare with.
    """
    campaign, errors = _inputs(files, limits)
    evidence = read_evidence(campaign.plan, lambda path: files.get(_pack_name(path)))
    warnings = [f"{e.path}: not usable, counts as missing: {e.problem}" for e in evidence.values() if e.problem]
    failed = len(warnings)
    for key, found in evidence.items():
        if found.report is not None:
            wrong = [f"{_pack_name(found.path)}: {text}" for text in _report(files, campaign, key, found, found.report)]
            failed += bool(wrong)
            errors += wrong
    errors += _baselines(files, evidence)
    errors += _strangers(files, evidence)
    warnings += _unusual(campaign)
    usable = [key for key, found in evidence.items() if found.report is not None]
    faults = [key for key in usable if campaign.plan.scenario(key.scenario).category is Category.ERROR_INJECTION]
    verdict = _compile(files, campaign, evidence)
    errors += _verdict_files(files, verdict)
    return Recheck(
        errors=tuple(errors),
        warnings=tuple(warnings),
        verdict=verdict.word,
        plan=campaign.plan,
        settings=campaign.settings,
        policy=campaign.policy,
        reports=len(usable),
        error_injection_reports=len(faults),
        failed_reports=failed,
    )


def _inputs(files: Files, limits: Policy | None) -> tuple[_Campaign, list[str]]:
    plan = _parsed(CampaignPlan, files, layout.PLAN)
    manifest = _parsed(Manifest, files, layout.SCENARIOS)
    settings = Settings.parse(_bytes(files, layout.SETTINGS), layout.SETTINGS)
    policy = Policy.parse(_bytes(files, layout.POLICY), layout.POLICY)
    errors = []
    if settings.digest() != plan.settings_digest:
        errors.append(f"{layout.SETTINGS}: not the settings that {layout.PLAN} was made from")
    if manifest.scenarios != plan.scenarios:
        errors.append(f"{layout.SCENARIOS}: not the scenarios of {layout.PLAN}")
    if (policy.tier, policy.profile) != (settings.tier, settings.profile):
        errors.append(
            f"{layout.POLICY}: tier {policy.tier}, profile {policy.profile}, but the campaign was set to "
            f"tier {settings.tier}, profile {settings.profile}"
        )
    try:
        expected = limits or resolve_policy(settings.tier, settings.profile)
    except BadInput as error:
        raise EvidenceError(f"{layout.SETTINGS}: {error.what}") from error
    errors += [f"{layout.POLICY}: {text}" for text in _raised(policy, expected)]
    return _Campaign(plan, settings, policy), errors


def _raised(policy: Policy, expected: Policy) -> Iterator[str]:
    """Limits that are not the ones to judge by (where they come from may be worded differently)."""
    for key in sorted(policy.thresholds.keys() | expected.thresholds.keys()):
        ours, theirs = (p.thresholds[key].value if key in p.thresholds else None for p in (expected, policy))
        if ours != theirs:
            yield f"{key} is {theirs!r}, to be judged by is {ours!r}"


def _report(
    files: Files, campaign: _Campaign, key: ReportKey, found: ReportEvidence, report: Mapping[str, Any]
) -> Iterator[str]:
    """Everything wrong with one report."""
    place = _pack_name(found.path).removesuffix(layout.REPORT)
    yield from _identity(campaign, key, report)
    yield from _runtime(files, place)
    subject = files.get(place + layout.RECORDS)
    baseline_name = _baseline_name(key, place, report)
    baseline = files.get(baseline_name)
    if subject is None or baseline is None:
        yield f"its records are missing: {place + layout.RECORDS if subject is None else baseline_name}"
        return
    if _entry(report, "records", "subject", "path") != layout.RECORDS:
        yield "records.subject.path is not the records.json beside it"
    differences = recompute(report, subject, baseline, campaign.policy)
    yield from differences
    if not differences:
        yield from _windows(files, key, WindowRecords.parse(subject, place + layout.RECORDS))


def _identity(campaign: _Campaign, key: ReportKey, report: Mapping[str, Any]) -> Iterator[str]:
    """A report must be of the model, scenario and run whose place it takes, under the campaign's guards."""
    scenario = campaign.plan.scenario(key.scenario)
    expected = {
        "model_id": campaign.plan.model(key.model).id,
        "model_name": key.model,
        "scenario": key.scenario,
        "category": scenario.category.value,
        "strictness": scenario.strictness.value,
        "run": key.run,
        "plan_digest": campaign.plan.digest(),
    }
    for name, value in expected.items():
        if (given := _entry(report, "meta", name)) != value:
            yield f"meta.{name} is {given!r}, its place is {value!r}"
    if (order := report.get("guards_order")) != list(campaign.settings.guards_order):
        yield f"guards_order is {order!r}, the campaign's is {list(campaign.settings.guards_order)!r}"


def _runtime(files: Files, place: str) -> Iterator[str]:
    """The runtime manifest beside a report names the report's digest."""
    data = files.get(place + layout.RUNTIME)
    if data is None:
        yield f"{layout.RUNTIME} is missing beside it"
        return
    try:
        value = parse_json(data, place + layout.RUNTIME)
    except EvidenceError as error:
        yield error.what
        return
    if _entry(value, "report", "sha256") != sha256_bytes(files[place + layout.REPORT]):
        yield f"{layout.RUNTIME} beside it is of another report"


def _baseline_name(key: ReportKey, place: str, report: Mapping[str, Any]) -> str:
    """Where the baseline's records stand: the calibration run of the same number, or rescored beside the report."""
    named = layout.in_pack(key.model, str(_entry(report, "records", "baseline", "path")))
    rescored = f"{place}baseline_records.json"
    return rescored if named == rescored else f"reports/{key.model}/calibration/run_{key.run}/{layout.RECORDS}"


def _windows(files: Files, key: ReportKey, records: WindowRecords) -> Iterator[str]:
    """The records are of the windows that the schedule gave to this run, and their digest says so."""
    name = layout.model_state(key.model, "schedule.json")
    schedule = parse_json(_bytes(files, name), name)
    run = next((run for run in _entry(schedule, "runs") or [] if _entry(run, "run") == key.run), None)
    scheduled = [[i, arm] for arm in ("preview", "final") for i in _entry(run, arm) or []]
    if scheduled != [[window.id, window.arm] for window in records.windows]:
        yield f"its windows are not those that {name} gives to run {key.run}"
    rows = [[window.id, window.arm, window.tokens_sha256] for window in records.windows]
    digest = digest_json(
        {"run": records.run, "seed": records.seed, "seq_len": _entry(schedule, "seq_len"), "windows": rows}
    )
    if digest != records.windows_digest:
        yield "windows_digest of its records does not follow from their windows"


def _baselines(files: Files, evidence: Mapping[ReportKey, ReportEvidence]) -> Iterator[str]:
    """All reports of a model compare with one baseline, the one its profile describes."""
    digests: dict[str, set[str]] = {}
    for key, found in evidence.items():
        if found.report is not None:
            digests.setdefault(key.model, set()).add(str(_entry(found.report, "baseline_ref", "checkpoint_digest")))
    for model, seen in digests.items():
        name = layout.model_state(model, "model_profile.json")
        seen.add(str(_entry(parse_json(_bytes(files, name), name), "checkpoint_digest")))
        if len(seen) > 1:
            yield f"reports/{model}: {len(seen)} different baselines in its reports and {name}"


def _strangers(files: Files, evidence: Mapping[ReportKey, ReportEvidence]) -> Iterator[str]:
    """Reports that the plan does not ask for."""
    known = {_pack_name(found.path) for found in evidence.values()}
    for name in sorted(files):
        if name.endswith(f"/{layout.REPORT}") and name not in known:
            yield f"{name}: a report that the plan does not ask for"


def _unusual(campaign: _Campaign) -> Iterator[str]:
    """Expectations that are not the shipped ones of the suite: allowed, but a reader should know."""
    try:
        name = suite(campaign.plan.suite).scenarios
        shipped_ones = {scenario.id: scenario for scenario in parse_as(Manifest, shipped(name), name).scenarios}
    except BadInput:
        yield f"suite {campaign.plan.suite!r} is not a shipped one: its expectations are the campaign's own"
        return
    for scenario in campaign.plan.scenarios:
        if shipped_ones.get(scenario.id) != scenario:
            yield f"scenario {scenario.id}: its expectations are the campaign's own, not those of the shipped suite"
    if absent := sorted(shipped_ones.keys() - {scenario.id for scenario in campaign.plan.scenarios}):
        yield f"scenarios of the shipped suite that the campaign left out: {', '.join(absent)}"


def _compile(files: Files, campaign: _Campaign, evidence: Mapping[ReportKey, ReportEvidence]) -> Verdict:
    stated = parse_json(_bytes(files, layout.VERDICT), layout.VERDICT)
    return compile_verdict(
        campaign.plan,
        evidence,
        campaign.policy,
        guards_order=campaign.settings.guards_order,
        timestamp=str(_entry(stated, "timestamp")),
    )


def _verdict_files(files: Files, verdict: Verdict) -> Iterator[str]:
    """The published verdict, its summaries and its text are the ones that follow."""
    documents: dict[str, Mapping[str, Json]] = {layout.VERDICT: verdict.to_json()}
    documents |= {f"results/{name}": value for name, value in verdict.summaries.items()}
    for name, expected in documents.items():
        if canonical_json(parse_json(_bytes(files, name), name)) != canonical_json(expected):
            yield f"{name}: does not follow from the reports (they give {verdict.word})"
    if _bytes(files, layout.VERDICT_TEXT) != verdict.text().encode("utf-8"):
        yield f"{layout.VERDICT_TEXT}: not the text of the verdict"


def _pack_name(path: str) -> str:
    """Pack name of a path relative to the run directory, ``<model>/reports/...``."""
    model, _, rest = path.partition("/")
    return layout.in_pack(model, rest)


def _bytes(files: Files, name: str) -> bytes:
    if name not in files:
        raise EvidenceError(f"{name} is missing")
    return files[name]


def _parsed(model: Any, files: Files, name: str) -> Any:
    try:
        return model.model_validate(parse_json(_bytes(files, name), name))
    except ValidationError as error:
        detail = error.errors()[0]
        raise EvidenceError(f"{name}: {'.'.join(map(str, detail['loc'])) or 'document'}: {detail['msg']}") from error


def _entry(value: Json, *keys: str) -> Json:
    """A nested value, None where the way to it breaks off."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

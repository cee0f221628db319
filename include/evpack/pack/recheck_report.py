"""Does one report follow from its records? Pure: bytes in, differences out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from evpack.errors import EvidenceError, IntegrityError
from evpack.evaluation.assess import paired_differences
from evpack.evaluation.bca_check import bca_doubt
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.report import RecordFile, ReportMeta, build_report, provider_digest, recompute
from evpack.files import canonical_json, iso_time, pretty_json, sha256_bytes
from evpack.pack import layout
from evpack.pack.evidence import MALFORMED, Campaign, entry
from evpack.pack.papers import subject_of
from evpack.pack.profiles import Profile, unexpected
from evpack.pack.provenance import NO_IMAGE
from evpack.pack.recheck_guards import Case, blocks_again, guard_problems, probes_again
from evpack.pack.recheck_model import ModelFacts, window_problems
from evpack.verdict.evidence import ReportEvidence, ReportKey, read_report
from evpack.verdict.outcome import RunOutcome, judge

VERIFY_FORMAT = "verify-v1"
"""Name that the reference gives to outcomes of single reports."""
_SCORED_AGAIN = 0.01
"""Nats per token, mean over a run's windows: several times what another precision or batch moves single windows by
(sd up to 0.0016 for bf16 against fp32), and a tenth of the shift that a limit of 1.10 allows a subject."""


@dataclass(frozen=True)
class Judged:
    """One expected report, read, recomputed and judged. Small: the report itself is gone."""

    key: ReportKey
    outcome: RunOutcome
    present: bool
    problem: str | None = None
    """Why a report that is there cannot be used."""
    errors: tuple[str, ...] = ()
    """Everything in it that does not follow."""
    doubts: tuple[str, ...] = ()
    """What is odd in it and decides nothing."""
    unmet: tuple[str, ...] = ()
    """What the profile does not let pass."""
    made_at: datetime | None = None
    """When it says it was made; None when it does not say so in ISO 8601 with a time zone."""
    verified: bytes | None = None
    """verify.json as it must stand beside a report."""
    by_limits: RunOutcome | None = None
    """The outcome under the limits to judge by, where they are others and it was asked for."""

    @property
    def usable(self) -> bool:
        """Whether there is a report that can be read."""
        return self.present and self.problem is None


def judge_report(campaign: Campaign, facts: ModelFacts, key: ReportKey, path: str, profile: Profile = "dev") -> Judged:
    """Read, recompute and judge one report.

    Args:
        facts: of the report's model.
        path: of the report, relative to the run directory.
        profile: what is asked of it beyond that it follows from its records.
    """
    scenario = campaign.plan.scenario(key.scenario)
    found = read_report(campaign.plan, key, path, lambda name: campaign.files.get(pack_name(name)))
    outcome = judge(key, path, found, scenario, campaign.settings.guards_order, campaign.digests)
    if found is None:
        return Judged(key, outcome, present=False)
    if found.report is None:
        return Judged(key, outcome, True, problem=found.problem, verified=_verified(found, ()))
    errors = tuple(_all_errors(campaign, facts, key, found.report, pack_name(path).removesuffix(layout.REPORT)))
    doubts = () if errors else tuple(_doubts(campaign, key, path, found.report))
    return Judged(
        key,
        outcome,
        True,
        errors=errors,
        doubts=doubts,
        unmet=tuple(f"{pack_name(path)}: {text}" for text in unexpected(found.report, scenario.strictness, profile)),
        made_at=iso_time(entry(found.report, "artifacts", "generated_at")),
        verified=_verified(found, errors),
    )


def judge_again(other: Campaign, facts: ModelFacts, key: ReportKey, path: str) -> RunOutcome:
    """What a report that follows from its records would say under other limits, made again from the records.

    Args:
        other: the campaign under these limits (`Campaign.under_limits`).

    Raises:
        EvidenceError, or what `MALFORMED` names: when nothing can be made of them.
    """
    scenario, order = other.plan.scenario(key.scenario), other.settings.guards_order
    found = read_report(other.plan, key, path, lambda name: other.files.get(pack_name(name)))
    if found is not None and (report := found.report) is not None:
        place = pack_name(path).removesuffix(layout.REPORT)
        baseline_name = _baseline_name(key, place, report)
        losses = WindowRecords.parse(other.files[place + layout.RECORDS], place + layout.RECORDS)
        case = Case(other, key, report, place, losses, baseline_name.rpartition("/")[0] + "/", facts.baseline)
        remade = build_report(
            meta=ReportMeta(**{field.name: report["meta"][field.name] for field in fields(ReportMeta)}),
            subject=RecordFile(layout.RECORDS, other.files[place + layout.RECORDS]),
            baseline=RecordFile(report["records"]["baseline"]["path"], other.files[baseline_name]),
            policy=other.policy,
            guards=blocks_again(case),
            guards_order=order,
            dataset=report["dataset"],
            provenance=report["provenance"],
            edit=report["edit"],
            generated_at=report["artifacts"]["generated_at"],
            noop_shift=facts.noop_shift,
            overhead=facts.overhead,
        )
        found = replace(found, report=remade, sidecars={**found.sidecars, **probes_again(case)})
    return judge(key, path, found, scenario, order, other.digests)


def pack_name(path: str) -> str:
    """Pack name of a path relative to the run directory, ``<model>/reports/...``."""
    model, _, rest = path.partition("/")
    return layout.in_pack(model, rest)


def _all_errors(
    campaign: Campaign, facts: ModelFacts, key: ReportKey, report: Mapping[str, Any], place: str
) -> Iterator[str]:
    try:
        for text in _errors(campaign, facts, key, report, place):
            yield f"{place}{layout.REPORT}: {text}"
    except IntegrityError:
        raise  # the pack changed while it was read: nothing about its evidence can be said
    except EvidenceError as error:
        yield error.what
    except MALFORMED as error:
        yield f"{place}{layout.REPORT}: content of an unexpected form ({type(error).__name__}: {error})"


def _errors(
    campaign: Campaign, facts: ModelFacts, key: ReportKey, report: Mapping[str, Any], place: str
) -> Iterator[str]:
    yield from _identity(campaign, key, report)
    yield from _runtime(campaign, place, report)
    yield from _repeated(campaign, facts, key, report)
    baseline_digest = entry(report, "baseline_ref", "checkpoint_digest")
    if baseline_digest != facts.baseline:
        yield f"its baseline {baseline_digest!r} is not the one that the model's profile describes"
    if (tokenizer := entry(report, "provenance", "tokenizer_sha256")) != facts.tokenizer:
        yield f"its tokenizer {tokenizer!r} is not the one that made the windows"
    subject_name, baseline_name = place + layout.RECORDS, _baseline_name(key, place, report)
    for name in (subject_name, baseline_name):
        if name not in campaign.files:
            yield f"its records are missing: {name}"
            return
    if entry(report, "records", "subject", "path") != layout.RECORDS:
        yield f"records.subject.path is not the {layout.RECORDS} beside it"
    if layout.in_pack(key.model, str(entry(report, "records", "baseline", "path"))) != baseline_name:
        yield f"records.baseline.path does not lead to {baseline_name}"
    subject = campaign.files[subject_name]
    baseline = campaign.files[baseline_name]
    differences = recompute(report, subject, baseline, campaign.policy, facts.noop_shift, facts.overhead)
    yield from differences
    if differences:
        return
    if ("secondary_metrics" in report) != campaign.settings.accuracy:
        yield f"its secondary_metrics are not what the campaign asked for (accuracy: {campaign.settings.accuracy})"
    losses = WindowRecords.parse(subject, subject_name)
    schedule = campaign.at(layout.model_state(key.model, "schedule.json"))
    yield from window_problems(losses, key.run, facts, schedule)
    if baseline_name == place + layout.BASELINE_RECORDS:
        yield from _scored_again(campaign, key, WindowRecords.parse(campaign.files[baseline_name], baseline_name))
    baseline_place = baseline_name.rpartition("/")[0] + "/"
    yield from guard_problems(Case(campaign, key, report, place, losses, baseline_place, facts.baseline))


def _scored_again(campaign: Campaign, key: ReportKey, again: WindowRecords) -> Iterator[str]:
    """A baseline that was scored again, in whatever way, is still the one that calibration scored."""
    name = f"reports/{key.model}/calibration/run_{key.run}/{layout.RECORDS}"
    if not campaign.has(name):
        return
    first = {window.id: window.nll_sum for window in campaign.parsed(name, WindowRecords.parse).windows}
    moved = [
        (window.nll_sum - before) / window.predicted_tokens
        for window in again.windows
        if window.nll_sum is not None and (before := first.get(window.id)) is not None
    ]
    if moved and abs(mean := math.fsum(moved) / len(moved)) > _SCORED_AGAIN:
        yield f"its baseline, scored again, is {mean:+.4f} nats per token away from what calibration found"


def _doubts(campaign: Campaign, key: ReportKey, path: str, report: Mapping[str, Any]) -> Iterator[str]:
    """The bootstrap interval of a report without errors; it depends on a generator's draws and gates nothing."""
    place = pack_name(path).removesuffix(layout.REPORT)
    names = place + layout.RECORDS, _baseline_name(key, place, report)
    subject, baseline = (WindowRecords.parse(campaign.files[name], name) for name in names)
    if doubt := bca_doubt(entry(report, "primary_metric", "bca"), *paired_differences(subject, baseline), subject.seed):
        yield f"{place}{layout.REPORT}: {doubt}"


def _identity(campaign: Campaign, key: ReportKey, report: Mapping[str, Any]) -> Iterator[str]:
    """A report must be of the model, scenario and run whose place it takes, under the campaign's guards."""
    scenario = campaign.plan.scenario(key.scenario)
    expected = {
        "model_id": campaign.plan.model(key.model).id,
        "model_name": key.model,
        "scenario": key.scenario,
        "category": scenario.category.value,
        "strictness": scenario.strictness.value,
        "run": key.run,
        "plan_digest": campaign.digests[0],
    }
    for name, value in expected.items():
        if (given := entry(report, "meta", name)) != value:
            yield f"meta.{name} is {given!r}, its place is {value!r}"
    if (order := report.get("guards_order")) != list(campaign.settings.guards_order):
        yield f"guards_order is {order!r}, the campaign's is {list(campaign.settings.guards_order)!r}"


def _repeated(campaign: Campaign, facts: ModelFacts, key: ReportKey, report: Mapping[str, Any]) -> Iterator[str]:
    """What a report repeats of the model, the windows, the variant and the campaign is what these say."""
    metadata = subject_of(campaign, key.model, key.scenario).metadata
    source = campaign.document(layout.SOURCE) if campaign.has(layout.SOURCE) else {}
    expected = {
        ("artifacts", "report_path"): layout.REPORT,
        ("baseline_ref", "model_id"): campaign.plan.model(key.model).id,
        ("dataset", "provider"): facts.provider,
        ("dataset", "seq_len"): facts.seq_len,
        ("dataset", "tokens_available"): facts.tokens,
        ("edit_name",): key.scenario,
        ("edit",): {**metadata, "name": key.scenario},
        ("provenance", "code"): {name: entry(source, name) for name in ("commit", "dirty")},
        ("provenance", "determinism"): campaign.settings.determinism,
        ("provenance", "provider_digest"): provider_digest(
            str(entry(report, "dataset", "windows", "digest")), facts.tokenizer
        ),
    }
    for place, value in expected.items():
        if canonical_json(given := entry(report, *place)) != canonical_json(value):
            yield f"{'.'.join(place)} is {given!r:.200}, expected {value!r:.200}"


def _runtime(campaign: Campaign, place: str, report: Mapping[str, Any]) -> Iterator[str]:
    """The runtime manifest beside a report names the report's digest and that of the preset it was made with."""
    if place + layout.RUNTIME not in campaign.files:
        yield f"{layout.RUNTIME} is missing beside it"
        return
    value = campaign.document(place + layout.RUNTIME, "runtime")
    if value["report"]["sha256"] != sha256_bytes(campaign.files[place + layout.REPORT]):
        yield f"{layout.RUNTIME} beside it is of another report"
    config = value["config"]
    preset = campaign.at(f"state/{config['path']}")
    if config["source"] == "file" and campaign.files.digests.get(preset) != config["sha256"]:
        yield f"{layout.RUNTIME} beside it names a preset {config['path']!r} that is not the packed one"
    context, provenance = value.get("context", {}), report["provenance"]
    for name in sorted(context.keys() & provenance.keys()):
        if canonical_json(context[name]) != canonical_json(provenance[name]):
            yield f"{layout.RUNTIME} beside it has another {name} than its provenance"
    contained = value["execution_mode"] == "container"
    expected = {
        "generated_at_utc": (value["generated_at_utc"], entry(report, "artifacts", "generated_at")),
        "allow_network": (value["runtime"]["allow_network"], campaign.settings.net),
        "allow_remote_code": (value["runtime"]["allow_remote_code"], campaign.settings.allow_remote_code),
        "container_execution": (value["runtime"]["container_execution"], contained),
        "an image": (value["runtime"]["image_ref"] != NO_IMAGE, contained),
        "an image digest": (value["runtime"]["image_digest"] is not None, contained),
    }
    for name, (given, ours) in expected.items():
        if given != ours:
            yield f"{layout.RUNTIME} beside it has {name} {given!r:.100}, expected {ours!r:.100}"


def _baseline_name(key: ReportKey, place: str, report: Mapping[str, Any]) -> str:
    """Where the baseline's records stand: the calibration run of the same number, or rescored beside the report."""
    named = layout.in_pack(key.model, str(entry(report, "records", "baseline", "path")))
    rescored = place + layout.BASELINE_RECORDS
    return rescored if named == rescored else f"reports/{key.model}/calibration/run_{key.run}/{layout.RECORDS}"


def _verified(found: ReportEvidence, errors: tuple[str, ...]) -> bytes:
    """verify.json: the outcome of recomputing one report, in the reference's form."""
    report = found.report or {}
    metric = report.get("primary_metric", {})
    ok = found.report is not None and not errors
    reason = "ok" if ok else "malformed" if found.report is None else "policy_fail"
    return pretty_json(
        {
            "format_version": VERIFY_FORMAT,
            "summary": {"ok": ok, "reason": reason},
            "results": [
                {
                    "id": report.get("run_id"),
                    "schema_version": report.get("schema_version"),
                    "kind": metric.get("kind"),
                    "ok": ok,
                    "reason": reason,
                    "ratio_vs_baseline": metric.get("ratio_vs_baseline"),
                    "ci": metric.get("ci"),
                    "recompute": {"family": "ppl", "ok": ok, "reason": "; ".join(errors) or None},
                }
            ],
            "resolution": {"exit_code": {"ok": 0, "policy_fail": 1, "malformed": 2}[reason]},
        }
    )

"""Do a report's guard blocks follow from the raw figures packed beside it? Pure: bytes in, differences out.

Every block is made again by the functions that made it (`guards.chain`, `guards.invariants_assess`) and compared as a
whole. What cannot be made again is taken from the block and must agree with the figures: findings that need tensors or
a model (elements that are not finite, what loading said) and losses with scales applied. That a guard could not run is
believed only where it left no figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evpack.checkpoint.contents import Contents
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.report import GUARD_FLAGS, differences, guard_block
from evpack.files import sha256_bytes
from evpack.guards import chain, invariants_assess, probes, rmt, spectral, variance
from evpack.guards.base import GUARD_ERROR
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import layout
from evpack.pack.evidence import Campaign, entry
from evpack.pack.figures import activation_problems, matrix_problems
from evpack.pack.papers import Subject, baseline_of, excused, subject_of
from evpack.verdict.evidence import ReportKey

Block = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One report whose guards are judged again."""

    campaign: Campaign
    key: ReportKey
    report: Mapping[str, Any]
    place: str
    """Directory of the report in the pack, with a slash."""
    losses: WindowRecords
    """The subject's."""
    baseline_place: str
    """Directory of the baseline's figures of this run in the pack, with a slash."""
    baseline_digest: str | None

    @cached_property
    def baseline(self) -> Contents:
        """The model on paper."""
        return baseline_of(self.campaign, self.key.model)

    @cached_property
    def subject(self) -> Subject:
        """The variant on paper."""
        return subject_of(self.campaign, self.key.model, self.key.scenario)

    @cached_property
    def declaration(self) -> chain.Declaration:
        """What the guards must excuse."""
        return excused(self.campaign.plan, self.baseline, self.key.model, self.key.scenario)

    @cached_property
    def spectral(self) -> SpectralRecords:
        """The subject's matrices; all runs of a scenario have the same bytes."""
        name = self.place + layout.SPECTRAL
        key = ("spectral", self.campaign.files.digests[name])
        return self.campaign.kept(key, lambda: SpectralRecords.parse(self.campaign.read(name), name))

    @cached_property
    def activations(self) -> ActivationRecords:
        """The subject's activations."""
        name = self.place + layout.ACTIVATIONS
        return ActivationRecords.parse(self.campaign.read(name), name)

    @cached_property
    def probed(self) -> tuple[ActivationRecords, ActivationRecords]:
        """What probes read, of the subject and of the baseline."""
        names = [self.place + name for name in (probes.SUBJECT_FILE, probes.BASELINE_FILE)]
        subject, baseline = (ActivationRecords.parse(self.campaign.read(name), name) for name in names)
        return subject, baseline

    @property
    def probe(self) -> Block:
        """What a probe says of the case that it is of."""
        return {
            "model_id": self.campaign.plan.model(self.key.model).id,
            "error_type": self.key.scenario,
            "run": self.key.run,
            "seed": self.losses.seed,
            "subject": self.subject.digest,
            "baseline": self.baseline_digest,
        }

    @property
    def spectral_name(self) -> str:
        """Where the baseline's matrices stand."""
        return f"reports/{self.key.model}/calibration/{layout.SPECTRAL}"

    @property
    def activations_name(self) -> str:
        """Where the baseline's activations stand."""
        rescored = self.baseline_place == self.place
        return self.baseline_place + (layout.BASELINE_ACTIVATIONS if rescored else layout.ACTIVATIONS)

    def places(self, own: str, baseline: str) -> Block:
        """How a block names the figures that it follows from."""
        path = "reports/" + baseline.removeprefix(f"reports/{self.key.model}/")
        return {
            "subject": {"path": own, "sha256": sha256_bytes(self.campaign.read(self.place + own))},
            "baseline": {"path": path, "sha256": sha256_bytes(self.campaign.read(baseline))},
        }


def guard_problems(case: Case) -> Iterator[str]:
    """Every way in which the guards' blocks differ from what the figures give.

    Raises:
        EvidenceError: when figures, profile or variant are missing or malformed.
    """
    order = case.campaign.settings.guards_order
    if case.subject.digest != case.losses.checkpoint_digest:
        yield "the subject that was scored is not the variant that is packed"
    for name in GUARD_FLAGS:
        given = case.report[name]
        if name in order and not _has_figures(case, name):
            if not _could_not_run(name, given):
                yield f"{name}: its figures are missing: {case.place}{_FIGURES[name]}"
            continue
        remade = {name: _BLOCKS[name](case)} if name in order else {}
        yield from differences(guard_block(name, remade, order), given, name)
    if spectral.NAME in order and case.place + layout.SPECTRAL in case.campaign.files:
        problems = case.campaign.kept(
            ("matrices", case.campaign.files.digests[case.place + layout.SPECTRAL], case.key.model, case.key.scenario),
            lambda: list(
                matrix_problems(
                    case.spectral,
                    case.subject.contents,
                    case.campaign.policy,
                    digest=case.subject.digest,
                    reference=case.baseline,
                )
            ),
        )
        yield from (f"{layout.SPECTRAL}: {text}" for text in problems)
        yield from _contradictions(case)
    if _LISTENING & set(order) and case.place + layout.ACTIVATIONS in case.campaign.files:
        heard_wrong = activation_problems(case.activations, case.losses, order, case.campaign.policy)
        yield from (f"{layout.ACTIVATIONS}: {text}" for text in heard_wrong)
        heard = _heard(case)
        if (heard.side, heard.checkpoint_digest, heard.whole) != ("baseline", case.baseline_digest, True):
            yield f"{case.activations_name}: not of the model's baseline, or without some of its figures"
    if invariants_assess.NAME in order:
        yield from _loading(case)
    for file in probes.wanted(case.campaign.plan.scenario(case.key.scenario)):
        if case.place + file in case.campaign.files:
            yield from _probe_problems(case, file)


def blocks_again(case: Case) -> dict[str, Block]:
    """The guards' blocks of a report without problems as the campaign's limits give them."""
    return {
        name: _BLOCKS[name](case) if _has_figures(case, name) else case.report[name]
        for name in GUARD_FLAGS
        if name in case.campaign.settings.guards_order
    }


def probes_again(case: Case) -> dict[str, Block]:
    """The same of its probes, by file; one that could not run is as it was."""
    files = probes.wanted(case.campaign.plan.scenario(case.key.scenario))
    return {file: _probe(case, file) for file in files if case.place + file in case.campaign.files}


def _has_figures(case: Case, name: str) -> bool:
    return name not in _FIGURES or case.place + _FIGURES[name] in case.campaign.files


def _probe(case: Case, file: str) -> Block:
    """A probe made again like a guard; one that could not run is never triggered, so it is believed."""
    given = case.campaign.document(case.place + file)
    if given == probes.failed(file, case.probe, str(given.get("error"))):
        return dict(given)
    return probes.probe(file, case.probe, case.campaign.policy, *case.probed, _trial(case, given))


def _probe_problems(case: Case, file: str) -> Iterator[str]:
    given = case.campaign.document(case.place + file)
    if given == probes.failed(file, case.probe, str(given.get("error"))):
        return
    sides = ("subject", case.subject.digest), ("baseline", case.baseline_digest)
    every = tuple(window.id for window in case.losses.windows)
    for records, (side, digest) in zip(case.probed, sides, strict=True):
        theirs = (records.side, records.checkpoint_digest, records.run, records.windows_digest, records.windows)
        if theirs != (side, digest, case.key.run, case.losses.windows_digest, every):
            yield f"{file}: the {side}'s figures are not of every window of this run"
    yield from differences(_probe(case, file), given, file)


def _invariants(case: Case) -> Block:
    given = case.report[invariants_assess.NAME]
    pre = invariants_assess.reference_result(case.baseline)
    failures = given["failures"]
    if len(failures) == 1 and failures[0]["type"] == GUARD_ERROR:
        return invariants_assess.report_block(pre, invariants_assess.failed(failures[0]["message"]))
    observed = invariants_assess.observed_in(given)
    post = invariants_assess.assess(case.subject.contents, case.baseline, case.subject.declaration, observed)
    return invariants_assess.report_block(pre, post)


def _spectral(case: Case) -> Block:
    digests = case.campaign.files.digests
    figures = digests[case.place + layout.SPECTRAL], digests.get(case.spectral_name)

    def judge() -> Block:
        baseline = case.campaign.parsed(case.spectral_name, SpectralRecords.parse)
        return chain.spectral_block(case.spectral, baseline, case.campaign.policy, case.declaration)

    block = case.campaign.kept(("spectral block", figures, case.declaration), judge)
    return block | {"records": case.places(layout.SPECTRAL, case.spectral_name)}


def _rmt(case: Case) -> Block:
    return chain.rmt_block(case.activations, _heard(case), case.campaign.policy, case.declaration) | _listened(case)


def _variance(case: Case) -> Block:
    try_scales = _trial(case, case.report[variance.NAME])
    return chain.variance_block(case.activations, _heard(case), case.campaign.policy, try_scales) | _listened(case)


def _trial(case: Case, block: Mapping[str, Any]) -> Callable[[Mapping[str, float]], variance.Trial | None]:
    """The losses with scales applied, as a block states them."""

    def try_scales(_: Mapping[str, float]) -> variance.Trial | None:
        scaled = entry(block, "ab_test", "nll_sums_with_ve")
        windows = case.losses.windows
        if not isinstance(scaled, list) or len(scaled) != len(windows):
            return None
        without = [math.nan if window.nll_sum is None else window.nll_sum for window in windows]
        return variance.Trial.of(without, scaled, [window.predicted_tokens for window in windows])

    return try_scales


def _heard(case: Case) -> ActivationRecords:
    return case.campaign.parsed(case.activations_name, ActivationRecords.parse)


def _listened(case: Case) -> Block:
    return {"records": case.places(layout.ACTIVATIONS, case.activations_name)}


def _guarded(name: str, remake: Callable[[Case], Block]) -> Callable[[Case], Block]:
    """A guard made again in the way it was made: what stops it from judging is its finding."""
    return lambda case: chain.guarded(name, lambda: remake(case))


_BLOCKS: dict[str, Callable[[Case], Block]] = {
    invariants_assess.NAME: _invariants,
    spectral.NAME: _guarded(spectral.NAME, _spectral),
    rmt.NAME: _guarded(rmt.NAME, _rmt),
    variance.NAME: _guarded(variance.NAME, _variance),
}
_FIGURES = {
    spectral.NAME: layout.SPECTRAL,
    rmt.NAME: layout.ACTIVATIONS,
    variance.NAME: layout.ACTIVATIONS,
}
_LISTENING = {rmt.NAME, variance.NAME}


def _could_not_run(name: str, block: Mapping[str, Any]) -> bool:
    """Whether a block has exactly the form of a guard that could not run."""
    failures = block.get("failures")
    message = entry(failures[0], "message") if isinstance(failures, list) and failures else None
    start = chain.could_not_run(name, "")["failures"][0]["message"]
    if not isinstance(message, str) or not message.startswith(start):
        return False
    return block == {"evaluated": True, **chain.could_not_run(name, message.removeprefix(start))}


def _contradictions(case: Case) -> Iterator[str]:
    """The invariants guard names every matrix whose figures are not finite, and no other."""
    if invariants_assess.NAME not in case.campaign.settings.guards_order:
        return
    finite: dict[str, bool] = {}
    for key, matrix in case.spectral.matrices.items():
        name = key.partition("[")[0]
        finite[name] = finite.get(name, True) and matrix.sigma is not None and matrix.frobenius is not None
    findings = invariants_assess.observed_in(case.report[invariants_assess.NAME])
    found = next((f for f in findings if f.type == invariants_assess.NON_FINITE), None)
    named, count = ((), 0) if found is None else (found.tensors, found.count)
    for name, is_finite in sorted(finite.items()):
        if is_finite and name in named:
            yield f"invariants: {name} is said to be not finite, its figures are"
        elif not is_finite and name not in named and (count == len(named) or name < named[-1]):
            yield f"invariants: {name} is not finite by its figures, and no finding says so"
    for name in named:
        if case.baseline.tensors.get(name) == case.subject.contents.tensors.get(name):
            yield f"invariants: {name} is said to be not finite, but is the baseline's or not there"


def _loading(case: Case) -> Iterator[str]:
    """The findings about loading are the reasons for which nothing could be scored."""
    given = case.report[invariants_assess.NAME]
    if any(failure["type"] == GUARD_ERROR for failure in given["failures"]):
        return
    reasons = {str(window.reason) for window in case.losses.windows}
    kinds = (invariants_assess.LOAD_FAILED, invariants_assess.UNEXPLAINED)
    expected = {reason for reason in reasons if reason.startswith(tuple(f"{kind}:" for kind in kinds))}
    said = set()
    for finding in invariants_assess.observed_in(given):
        if finding.type in kinds:
            said.add(finding.message if finding.type == kinds[0] else f"{finding.type}:{finding.count}")
    if said != expected:
        yield f"invariants: loading gave {sorted(said)}, the losses are missing because of {sorted(expected)}"

"""The requirements of a campaign and the verdict they give. The page to read when a verdict surprises.

Every requirement is true, false or not known, because evidence is missing that could decide it:

    scenario_coverage          every gating scenario has usable evidence for every model and run
    clean_all_pass             must_pass: every run passed (metric accepted, every applicable gate passed)
    stress_required_fail       must_fail: the metric of every run was rejected; inconclusive is not rejected
    stress_expected_detectors  must_fail: an expected detector hit in every run, when any is declared
    error_injection_detected   must_detect: an expected detector hit in every run
    informational_stress_min_signal_fraction   enough informational stress cells gave a signal, when there are any

FAIL when one is false: no evidence still to come can mend it. Else INCOMPLETE when one is not known, or when the
plan asks for nothing that gates. Else PASS. See docs/decisions/0004-incomplete.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Category, Strictness
from evpack.errors import CampaignExit
from evpack.plan.model import CampaignPlan
from evpack.verdict import summaries
from evpack.verdict.cells import Cell, Tri, cells_of, judge_runs
from evpack.verdict.evidence import ReportEvidence, ReportKey, expected_reports
from evpack.verdict.outcome import SIGNAL_KINDS, RunOutcome
from evpack.verdict.text import render

VERDICT_NAME = "final_verdict.json"
TEXT_NAME = "final_verdict.txt"
SIGNAL_FRACTION = "informational_stress_min_signal_fraction"
Word = Literal["PASS", "FAIL", "INCOMPLETE"]


@dataclass(frozen=True)
class Verdict:
    """The verdict of a campaign with everything that is published about it."""

    word: Word
    document: Mapping[str, Any]
    """final_verdict.json."""
    summaries: Mapping[str, Mapping[str, Any]]
    """The four summaries by file name."""

    @property
    def exit_code(self) -> CampaignExit:
        """Exit code of a campaign with this verdict."""
        return CampaignExit[self.word]

    def to_json(self) -> dict[str, Any]:
        """final_verdict.json as a plain value."""
        return dict(self.document)

    def text(self) -> str:
        """final_verdict.txt."""
        return render(self.document)


def compile_verdict(
    plan: CampaignPlan,
    evidence: Mapping[ReportKey, ReportEvidence],
    policy: Policy,
    *,
    guards_order: Sequence[str],
    timestamp: str,
) -> Verdict:
    """Judge a campaign by what its plan expects.

    Args:
        evidence: what was found (`evidence.read_evidence`); an expected report without an entry is missing.
        guards_order: PACK_GUARDS_ORDER as the campaign froze it: whose flags a report must carry.
        timestamp: ISO 8601 UTC; everything else depends on the other arguments only.
    """
    outcomes = judge_runs(plan, evidence, policy, guards_order)
    unexpected = sorted(evidence[key].path for key in evidence.keys() - expected_reports(plan).keys())
    return compile_outcomes(
        plan, outcomes, policy, guards_order=guards_order, timestamp=timestamp, unexpected=unexpected
    )


def compile_outcomes(
    plan: CampaignPlan,
    outcomes: Mapping[ReportKey, RunOutcome],
    policy: Policy,
    *,
    guards_order: Sequence[str],
    timestamp: str,
    unexpected: Sequence[str] = (),
) -> Verdict:
    """`compile_verdict` for runs that are judged already; reports need not be in memory together.

    Args:
        outcomes: of every run that the plan expects, in plan order.
        unexpected: paths of reports that the plan does not ask for.
    """
    cells = cells_of(plan, outcomes)
    kinds = policy.words("verdict.signal_kinds")
    needed = policy.number("verdict.informational_min_signal_fraction")
    informational = [c for c in cells if c.scenario.category is Category.STRESS and not c.gates]
    fraction = _Fraction([cell.signal(kinds) for cell in informational], needed)
    failed = [*_coverage(cells), *_per_scenario(cells), *fraction.entries()]
    words = {entry["verdict"] for entry in failed}
    nothing = not any(cell.gates for cell in cells) and not informational
    word: Word = "FAIL" if "FAIL" in words else "INCOMPLETE" if words or nothing else "PASS"
    document = {
        "verdict": word,
        "suite": plan.suite,
        "plan_digest": plan.digest(),
        "policy": _policy(policy),
        "guards_order": list(guards_order),
        "manifest": {"path": "state/scenarios.json", "schema": "evidence_pack_scenarios_v1", "schema_version": 1},
        "criteria": {
            "clean_all_pass": True,
            "stress_required_fail": True,
            "stress_expected_detectors": True,
            "error_injection_detected": True,
            SIGNAL_FRACTION: needed,
        },
        "counts": _counts(plan, cells, kinds),
        "informational_stress": fraction.to_json()
        | {"signal_kinds": list(kinds), "by_model": _by_model(cells, kinds), "clean": _clean_rates(cells, kinds)},
        "missing": {"by_model": _missing(cells)},
        "failed_requirements": failed,
        "unexpected_reports": list(unexpected),
        "timestamp": timestamp,
    }
    return Verdict(word, document, summaries.build(cells, kinds, policy))


def _coverage(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    lacking: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.gates and not cell.complete:
            lacking.setdefault(cell.model, []).append(cell)
    for model, open_cells in lacking.items():
        ids = [cell.scenario.id for cell in open_cells]
        yield {
            "requirement": "scenario_coverage",
            "verdict": "INCOMPLETE",
            "message": f"{model}: usable evidence of every run is missing for {', '.join(ids)}",
            "model": model,
            "missing": [
                {"scenario": cell.scenario.id, "category": cell.scenario.category.value, "runs": _problems(cell)}
                for cell in open_cells
            ],
        }


def _problems(cell: Cell) -> list[dict[str, Any]]:
    if not cell.runs:
        return [{"run": None, "path": None, "problem": "the plan has no evaluation of it"}]
    return [{"run": run.key.run, "path": run.path, "problem": run.problem} for run in cell.missing]


_RULES: tuple[tuple[Strictness, str, str, Callable[[RunOutcome], bool]], ...] = (
    (Strictness.MUST_PASS, "clean_all_pass", "must pass and did not", lambda run: run.passed),
    (Strictness.MUST_FAIL, "stress_required_fail", "must be rejected and was not", lambda run: run.outcome == "reject"),
    (Strictness.MUST_FAIL, "stress_expected_detectors", "no expected detector hit", lambda run: bool(run.matched)),
    (Strictness.MUST_DETECT, "error_injection_detected", "must be detected and was not", lambda run: bool(run.matched)),
)


def _per_scenario(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    for strictness, requirement, complaint, holds in _RULES:
        by_scenario: dict[str, list[RunOutcome]] = {}
        for cell in cells:
            optional = requirement == "stress_expected_detectors" and not cell.scenario.requirements.detectors_any_of
            if cell.scenario.strictness is strictness and not optional and (broken := cell.broken(holds)):
                by_scenario.setdefault(cell.scenario.id, []).extend(broken)
        for scenario, runs in by_scenario.items():
            yield {
                "requirement": requirement,
                "verdict": "FAIL",
                "message": f"{scenario}: {complaint} ({len(runs)} {'run' if len(runs) == 1 else 'runs'})",
                "scenario": scenario,
                "failures": [_failure(run, requirement) for run in runs],
            }


def _failure(run: RunOutcome, requirement: str) -> dict[str, Any]:
    reasons = list(run.reasons)
    if requirement == "stress_required_fail":
        reasons = ["inconclusive" if run.outcome == "inconclusive" else "accepted"]
    elif requirement != "clean_all_pass":
        reasons = ["no_detector_hit"]
    return {
        "model": run.key.model,
        "run": run.key.run,
        "passed": run.passed,
        "outcome": run.outcome,
        "ratio": run.ratio,
        "reasons": reasons,
        "path": run.path,
    }


@dataclass(frozen=True)
class _Fraction:
    """Share of informational stress cells that gave a signal."""

    signals: list[Tri]
    needed: float

    def to_json(self) -> dict[str, Any]:
        unknown = sum(signal is None for signal in self.signals)
        return _rate(self.signals) | {"unknown": unknown, "required": self.needed}

    def entries(self) -> Iterator[dict[str, Any]]:
        """A failed requirement when too few signal, an open one when missing evidence decides."""
        figures = self.to_json()
        total = figures["total"]
        if not total or figures["signal"] >= self.needed * total:
            return
        mendable = figures["signal"] + figures["unknown"] >= self.needed * total
        yield {
            "requirement": SIGNAL_FRACTION,
            "verdict": "INCOMPLETE" if mendable else "FAIL",
            "message": f"{figures['signal']} of {total} informational stress cells gave a signal, "
            f"{figures['unknown']} unknown, fraction {self.needed:g} required",
        }


def _by_model(cells: Iterable[Cell], kinds: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[Tri]] = {}
    for cell in cells:
        if cell.scenario.category is Category.STRESS and not cell.gates:
            found.setdefault(cell.model, []).append(cell.signal(kinds))
    return {model: _rate(signals) for model, signals in found.items()}


def _clean_rates(cells: Iterable[Cell], kinds: Sequence[str]) -> dict[str, Any]:
    """The same rate on clean scenarios: signals mean nothing where harmless edits give as many."""
    clean = [cell for cell in cells if cell.scenario.category is Category.CLEAN]
    by_kind = {kind: _rate([cell.signal((kind,)) for cell in clean])["fraction"] for kind in SIGNAL_KINDS}
    return _rate([cell.signal(kinds) for cell in clean]) | {"by_kind": by_kind}


def _rate(signals: Sequence[Tri]) -> dict[str, Any]:
    yes = sum(signal is True for signal in signals)
    return {"total": len(signals), "signal": yes, "fraction": yes / len(signals) if signals else None}


def _missing(cells: Iterable[Cell]) -> dict[str, dict[str, list[str]]]:
    """Scenarios without usable evidence of every run; informational ones are listed apart."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if not cell.complete:
            category = cell.scenario.category.value + ("" if cell.gates else "_informational")
            found.setdefault(cell.model, {}).setdefault(category, []).append(cell.scenario.id)
    return found


def _counts(plan: CampaignPlan, cells: Sequence[Cell], kinds: Sequence[str]) -> dict[str, int]:
    """Cells (model x scenario); a cell has a property when all its runs have it."""

    def count(chosen: Iterable[Cell], value: Callable[[Cell], Tri]) -> int:
        return sum(value(cell) is True for cell in chosen)

    group: dict[str, list[Cell]] = {}
    for cell in cells:
        group.setdefault(cell.group, []).append(cell)
    clean, stress, errors = (group.get(name, []) for name in ("clean", "stress_required", "error_required"))
    shown, shown_errors = group.get("stress_informational", []), group.get("error_informational", [])
    catastrophic = [cell for cell in stress if cell.scenario.requirements.catastrophic_required]
    runs = [run for cell in cells for run in cell.runs]
    return {
        "models_total": len(plan.models),
        "clean_total": len(clean),
        "clean_pass": count(clean, lambda cell: cell.passed),
        "stress_total": len(stress),
        "stress_fail": count(stress, lambda cell: cell.rejected),
        "catastrophic_required_total": len(catastrophic),
        "catastrophic_required_present": sum(cell.complete for cell in catastrophic),
        "catastrophic_required_fail": count(catastrophic, lambda cell: cell.rejected),
        "error_injection_total": len(errors),
        "error_injection_detected": count(errors, lambda cell: cell.detected),
        "informational_stress_total": len(shown),
        "informational_stress_fail": count(shown, lambda cell: cell.rejected),
        "informational_stress_signal": count(shown, lambda cell: cell.signal(kinds)),
        "informational_error_total": len(shown_errors),
        "informational_error_signal": count(shown_errors, lambda cell: cell.signal(kinds)),
        "runs_expected": len(runs),
        "runs_usable": sum(run.usable for run in runs),
    }


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "tier": policy.tier,
        "profile": policy.profile,
        "unstable": policy.flag("metrics.unstable"),
        "max_evidence_level": policy.evidence_cap,
        "digest": policy.digest(),
    }

"""Model x scenario: all expected runs together. What all runs must share is true, false or not known (None)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Category, Scenario, Strictness
from evpack.plan.model import CampaignPlan
from evpack.verdict.evidence import ReportEvidence, ReportKey, expected_reports
from evpack.verdict.outcome import RunOutcome, judge

Tri = bool | None
"""True, False, or None when evidence is missing that could decide it (Kleene's third value)."""


@dataclass(frozen=True)
class Cell:
    """One scenario on one model."""

    model: str
    scenario: Scenario
    runs: tuple[RunOutcome, ...]
    """Every run the plan expects, in order; empty when the plan has no evaluate step for the cell."""

    @property
    def missing(self) -> tuple[RunOutcome, ...]:
        """Expected runs without usable evidence."""
        return tuple(run for run in self.runs if not run.usable)

    @property
    def complete(self) -> bool:
        """Every expected run has usable evidence, and there is at least one."""
        return bool(self.runs) and not self.missing

    def every(self, holds: Callable[[RunOutcome], bool]) -> Tri:
        """Whether all runs have a property; one usable run without it decides, whatever is missing."""
        if any(run.usable and not holds(run) for run in self.runs):
            return False
        return True if self.complete else None

    def broken(self, holds: Callable[[RunOutcome], bool]) -> tuple[RunOutcome, ...]:
        """Usable runs without a property."""
        return tuple(run for run in self.runs if run.usable and not holds(run))

    @property
    def detected(self) -> Tri:
        """Whether every run was noticed by an expected detector."""
        return self.every(lambda run: bool(run.matched))

    @property
    def passed(self) -> Tri:
        """Whether every run passed."""
        return self.every(lambda run: run.passed)

    @property
    def rejected(self) -> Tri:
        """Whether the metric of every run was rejected."""
        return self.every(lambda run: run.outcome == "reject")

    def signal(self, kinds: Iterable[str]) -> Tri:
        """Whether every run gave a signal of one of these kinds."""
        wanted = frozenset(kinds)
        return self.every(lambda run: bool(wanted.intersection(run.signals)))

    @property
    def gates(self) -> bool:
        """Whether the scenario decides by itself; informational ones never do."""
        return self.scenario.strictness is not Strictness.INFORMATIONAL

    @property
    def group(self) -> str:
        """Group in the category summary."""
        if self.scenario.category is Category.CLEAN:
            return "clean"
        kind = "stress" if self.scenario.category is Category.STRESS else "error"
        return f"{kind}_{'required' if self.gates else 'informational'}"


def judge_cells(
    plan: CampaignPlan, evidence: Mapping[ReportKey, ReportEvidence], policy: Policy, guards_order: Sequence[str]
) -> tuple[Cell, ...]:
    """Every scenario of the plan on every model of the plan, by scenario id, then in the plan's order of models."""
    return cells_of(plan, judge_runs(plan, evidence, policy, guards_order))


def judge_runs(
    plan: CampaignPlan, evidence: Mapping[ReportKey, ReportEvidence], policy: Policy, guards_order: Sequence[str]
) -> dict[ReportKey, RunOutcome]:
    """Every run that the plan expects, judged."""
    digests = (plan.digest(), policy.digest())
    return {
        key: judge(key, path, evidence.get(key), plan.scenario(key.scenario), guards_order, digests)
        for key, path in expected_reports(plan).items()
    }


def cells_of(plan: CampaignPlan, outcomes: Mapping[ReportKey, RunOutcome]) -> tuple[Cell, ...]:
    """Judged runs, grouped as `judge_cells` returns them."""
    runs: dict[tuple[str, str], list[RunOutcome]] = {}
    for key, outcome in outcomes.items():
        runs.setdefault((key.model, key.scenario), []).append(outcome)
    return tuple(
        Cell(model.name, scenario, tuple(runs.get((model.name, scenario.id), ())))
        for scenario in sorted(plan.scenarios, key=lambda item: item.id)
        for model in plan.models
    )

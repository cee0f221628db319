"""The verdict table as data: one row per model x scenario, from the reports of a run directory."""

from __future__ import annotations

from dataclasses import dataclass

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import ErrorGeneration, Scenario, Strictness
from evpack.plan.model import CampaignPlan, ModelPlan, StepPlan, StepType
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.compile_verdict import read_run_evidence
from evpack.verdict.cells import Cell, judge_cells
from evpack.verdict.outcome import RunOutcome

_EXPECTED = {
    Strictness.MUST_PASS: "pass",
    Strictness.MUST_FAIL: "fail",
    Strictness.MUST_DETECT: "detect",
    Strictness.INFORMATIONAL: "(signal)",
}


@dataclass(frozen=True)
class Row:
    """One cell. Of several runs the one nearest to breaking its expectation is shown."""

    model: str
    scenario: str
    edit: str
    """Resolved parameters, or the injected error."""
    ratio: float | None
    """Perplexity of the subject divided by the baseline's."""
    interval: tuple[float, float] | None
    """95 % interval of the ratio."""
    guards: str
    """Guards and gates that did not pass, or ``ok``."""
    expected: str
    got: str
    problem: str
    """Why the shown run has no usable report, else empty."""
    met: bool
    """Whether what came is what must come; True for informational scenarios with a report."""


def verdict_rows(run: RunDir, plan: CampaignPlan) -> list[Row]:
    """Rows in plan order: by model, then by scenario."""
    settings = Settings.parse(run.settings.read_bytes(), str(run.settings))
    policy = Policy.parse(run.policy.read_bytes(), str(run.policy))
    cells = {
        (cell.model, cell.scenario.id): cell
        for cell in judge_cells(plan, read_run_evidence(run, plan), policy, settings.guards_order)
    }
    return [
        _row(plan, model, cells[model.name, scenario.id])
        for model in plan.models
        for scenario in plan.scenarios
        if cells[model.name, scenario.id].runs
    ]


def _row(plan: CampaignPlan, model: ModelPlan, cell: Cell) -> Row:
    scenario = cell.scenario
    shown = min(cell.runs, key=lambda run: (run.usable, *_margin(scenario, run)))
    met = [_met(scenario, run) for run in cell.runs]
    return Row(
        model=model.label,
        scenario=scenario.id,
        edit=_edit(plan, model, scenario),
        ratio=shown.ratio,
        interval=shown.display_ci,
        guards=", ".join(shown.flips) or ("ok" if shown.usable else "-"),
        expected=_EXPECTED[scenario.strictness],
        got=_got(scenario, shown, sum(met), len(met)),
        problem=shown.problem or "",
        met=all(met),
    )


def _met(scenario: Scenario, outcome: RunOutcome) -> bool:
    if not outcome.usable:
        return False
    match scenario.strictness:
        case Strictness.MUST_PASS:
            return outcome.passed
        case Strictness.MUST_FAIL:
            return outcome.outcome == "reject" and (bool(outcome.matched) or not scenario.requirements.detectors_any_of)
        case Strictness.MUST_DETECT:
            return bool(outcome.matched)
        case Strictness.INFORMATIONAL:
            return True


def _margin(scenario: Scenario, outcome: RunOutcome) -> tuple[bool, float]:
    """Sorts runs: unmet expectation first, then the ratio that lies nearest to the limit."""
    ratio = outcome.ratio if outcome.ratio is not None else float("inf")
    towards_limit = -ratio if scenario.strictness is Strictness.MUST_PASS else ratio
    return _met(scenario, outcome), towards_limit


def _got(scenario: Scenario, shown: RunOutcome, met: int, runs: int) -> str:
    count = f" {met}/{runs}" if runs > 1 else ""
    if not shown.usable:
        return "missing"
    match scenario.strictness:
        case Strictness.MUST_PASS:
            word = "pass" if shown.passed else f"not passed ({', '.join(shown.reasons)})"
        case Strictness.MUST_FAIL if shown.outcome == "reject" and not _met(scenario, shown):
            word = "failed, but no detector hit"
        case Strictness.MUST_FAIL:
            word = "fail" if shown.outcome == "reject" else shown.outcome
        case Strictness.MUST_DETECT:
            word = f"detected ({shown.matched[0]})" if shown.matched else "not detected"
        case Strictness.INFORMATIONAL:
            return "signal: " + ", ".join(shown.signals) if shown.signals else "no signal"
    return word + count


def _edit(plan: CampaignPlan, model: ModelPlan, scenario: Scenario) -> str:
    if isinstance(scenario.generation, ErrorGeneration):
        return scenario.generation.error_type
    step = _create_step(plan, model, scenario)
    if step is None or step.edit is None:
        return scenario.generation.edit_spec
    edit = step.edit
    parts = {
        "bits": edit.bits,
        "group": edit.group_size,
        "format": edit.format,
        "sparsity": edit.sparsity,
        "rank": edit.rank,
    }
    values = " ".join(f"{name}={value}" for name, value in parts.items() if value is not None)
    return f"{edit.edit_type} {values} {edit.scope}"


def _create_step(plan: CampaignPlan, model: ModelPlan, scenario: Scenario) -> StepPlan | None:
    steps = plan.steps_of(StepType.CREATE, model=model.name)
    return next((step for step in steps if step.scenario == scenario.id), None)

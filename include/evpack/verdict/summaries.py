"""The four summaries beside a verdict. They report; nothing in them gates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Category
from evpack.verdict.cells import Cell
from evpack.verdict.outcome import SIGNAL_KINDS, RunOutcome

CATEGORY_NAME = "category_summary.json"
GUARD_SIGNAL_NAME = "guard_signal_summary.json"
INTERVENTION_NAME = "guard_intervention_summary.json"
SCENARIO_NAME = "scenario_signal_summary.json"
GROUPS = ("clean", "stress_required", "stress_informational", "error_required", "error_informational")
GUARDS = ("invariants", "spectral", "rmt", "variance", "primary_metric", "overhead", "drift", "tail")

Pair = tuple[Cell, RunOutcome]


def build(cells: Sequence[Cell], kinds: Sequence[str], policy: Policy) -> dict[str, dict[str, Any]]:
    """All four by file name.

    Args:
        kinds: kinds of signals that count.
        policy: for the limits shown beside the figures.
    """
    usable = [(cell, run) for cell in cells for run in cell.runs if run.usable]
    return {
        CATEGORY_NAME: _categories(cells, kinds),
        GUARD_SIGNAL_NAME: _guard_signals(usable),
        INTERVENTION_NAME: _interventions(usable, policy),
        SCENARIO_NAME: _scenarios(cells, kinds),
    }


def _categories(cells: Sequence[Cell], kinds: Sequence[str]) -> dict[str, Any]:
    def figures(chosen: Sequence[Cell]) -> dict[str, int]:
        return {
            "total": len(chosen),
            "passed": sum(cell.passed is True for cell in chosen),
            "failed": sum(cell.rejected is True for cell in chosen),
            "detected": sum(cell.detected is True for cell in chosen),
            "signal": sum(cell.signal(kinds) is True for cell in chosen),
            "missing": sum(not cell.complete for cell in chosen),
        }

    groups = {}
    for group in GROUPS:
        chosen = [cell for cell in cells if cell.group == group]
        models = sorted({cell.model for cell in chosen})
        groups[group] = {
            **figures(chosen),
            "by_model": {model: figures([cell for cell in chosen if cell.model == model]) for model in models},
            "scenarios": sorted({cell.scenario.id for cell in chosen}),
        }
    return {"schema": "evpack_category_summary_v1", "unit": "model x scenario, all runs together", "categories": groups}


def _guard_signals(usable: Sequence[Pair]) -> dict[str, Any]:
    return {
        "schema": "evpack_guard_signal_summary_v1",
        "unit": "runs",
        "signal_kinds": {
            kind: {
                "runs": sum(kind in run.signals for _, run in usable),
                "clean_rate": _rate([kind in run.signals for cell, run in usable if _clean(cell)]),
            }
            for kind in SIGNAL_KINDS
        },
        "guards": {guard: _guard_signal(guard, usable) for guard in GUARDS},
    }


def _guard_signal(guard: str, usable: Sequence[Pair]) -> dict[str, Any]:
    def fired(run: RunOutcome) -> bool:
        return guard in run.flips or guard in run.remediations

    def rates(attribute: Callable[[Cell], str]) -> dict[str, float | None]:
        values = sorted({attribute(cell) for cell, _ in usable})
        return {value: _rate([fired(run) for cell, run in usable if attribute(cell) == value]) for value in values}

    return {
        "hard_flips": sum(guard in run.flips for _, run in usable),
        "remediation_events": sum(guard in run.remediations for _, run in usable),
        "any_signal": sum(fired(run) for _, run in usable),
        "rate_by_category": rates(lambda cell: cell.scenario.category.value),
        "rate_by_intent": rates(lambda cell: cell.scenario.intent),
        "rate_by_primary_guard": rates(lambda cell: cell.scenario.primary_guard),
        "clean_rate": _rate([fired(run) for cell, run in usable if _clean(cell)]),
        "scenarios": sorted({cell.scenario.id for cell, run in usable if fired(run)}),
    }


def _interventions(usable: Sequence[Pair], policy: Policy) -> dict[str, Any]:
    def entry(guard: str) -> dict[str, Any]:
        chosen = [(cell, run) for cell, run in usable if guard in run.remediations]
        return {"runs": len(chosen), "reports": sorted(run.path for _, run in chosen)}

    probes = [(run.path, probe) for _, run in usable for probe in run.probes]
    families: Counter[str] = Counter()
    for _, run in usable:
        families.update(dict(run.interventions.caps_by_family))
    return {
        "schema": "evpack_guard_intervention_summary_v1",
        "unit": "runs",
        "runs_total": len(usable),
        "spectral": entry("spectral")
        | {
            "max_caps": policy.number("spectral.max_caps"),
            "caps_applied": sum(run.interventions.caps for _, run in usable),
            "caps_by_family": dict(sorted(families.items())),
            "runs_caps_exceeded": sum(run.interventions.caps_exceeded for _, run in usable),
        },
        "variance": entry("variance")
        | {
            "proposed_scales": [
                {"report": run.path, "scales": dict(run.interventions.scales)}
                for _, run in usable
                if run.interventions.scales
            ]
        },
        "probes": [
            {"report": path, "file": name, "status": status, "triggered": triggered}
            for path, (name, status, triggered) in probes
        ],
    }


def _scenarios(cells: Iterable[Cell], kinds: Sequence[str]) -> dict[str, Any]:
    return {"schema": "evpack_scenario_signal_summary_v1", "cells": [_scenario(cell, kinds) for cell in cells]}


def _scenario(cell: Cell, kinds: Sequence[str]) -> dict[str, Any]:
    scenario = cell.scenario
    flips = sorted({guard for run in cell.runs for guard in run.flips})
    remediations = sorted({guard for run in cell.runs for guard in run.remediations})
    return {
        "model": cell.model,
        "scenario": scenario.id,
        "category": scenario.category.value,
        "strictness": scenario.strictness.value,
        "intent": scenario.intent,
        "primary_guard": scenario.primary_guard,
        "passed": cell.passed,
        "rejected": cell.rejected,
        "detectors_hit": cell.detected,
        "signal": cell.signal(kinds),
        "hard_flips": flips,
        "remediations": remediations,
        "primary_guard_signal": scenario.primary_guard in (*flips, *remediations),
        "run_count": len(cell.runs),
        "runs": [_run(run) for run in cell.runs],
    }


def _run(run: RunOutcome) -> dict[str, Any]:
    return {
        "run": run.key.run,
        "path": run.path,
        "problem": run.problem,
        "outcome": run.outcome or None,
        "ratio": run.ratio,
        "display_ci": None if run.display_ci is None else list(run.display_ci),
        "passed": run.passed if run.usable else None,
        "reasons": list(run.reasons),
        "matched": list(run.matched),
        "signals": list(run.signals),
        "probes": [{"file": name, "status": status, "triggered": fired} for name, status, fired in run.probes],
    }


def _clean(cell: Cell) -> bool:
    return cell.scenario.category is Category.CLEAN


def _rate(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None

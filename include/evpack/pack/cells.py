"""What a packed verdict says about each model and scenario, in the words that attest, diff and pages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evpack.errors import EvidenceError
from evpack.files import Json

State = Literal["met", "not met", "missing", "shown"]


@dataclass(frozen=True)
class CellState:
    """One scenario on one model, all runs together."""

    model: str
    """Directory name of the model."""
    scenario: str
    strictness: str
    state: State
    """Whether what came is what had to come; `shown` for scenarios that never gate."""
    got: str
    """What came, in a word or two."""
    signals: frozenset[str]
    """Guards and gates that fired in any run."""
    runs: tuple[Mapping[str, Any], ...]
    """Entries of scenario_signal_summary.json."""

    @property
    def gates(self) -> bool:
        """Whether the cell decides about the verdict by itself."""
        return self.strictness != "informational"


def cell_states(verdict: Json, summary: Json) -> tuple[CellState, ...]:
    """Every cell, in the summary's order.

    Args:
        verdict: final_verdict.json.
        summary: scenario_signal_summary.json.

    Raises:
        EvidenceError: when they are not what a campaign writes.
    """
    try:
        states = dict(_failing(verdict))
        return tuple(_cell(cell, states) for cell in summary["cells"])
    except (KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"the verdict and its summary cannot be read together ({error!r})") from error


def _failing(verdict: Json) -> Iterator[tuple[tuple[str, str], State]]:
    for requirement in verdict["failed_requirements"]:
        for gap in requirement.get("missing", []):
            yield (requirement["model"], gap["scenario"]), "missing"
    for requirement in verdict["failed_requirements"]:
        for failure in requirement.get("failures", []):
            yield (failure["model"], requirement["scenario"]), "not met"


def _cell(cell: Mapping[str, Any], states: Mapping[tuple[str, str], State]) -> CellState:
    gates = cell["strictness"] != "informational"
    return CellState(
        model=cell["model"],
        scenario=cell["scenario"],
        strictness=cell["strictness"],
        state=states.get((cell["model"], cell["scenario"]), "met") if gates else "shown",
        got=_got(cell),
        signals=frozenset([*cell["hard_flips"], *cell["remediations"]]),
        runs=tuple(cell["runs"]),
    )


def _got(cell: Mapping[str, Any]) -> str:
    """The word that answers the scenario's question, with the number of runs it is true for."""
    usable = [run for run in cell["runs"] if run["problem"] is None]
    if not usable:
        return "no report"
    tests = {
        "must_pass": ("passed", [run["passed"] for run in usable]),
        "must_fail": ("rejected", [run["outcome"] == "reject" for run in usable]),
        "must_detect": ("detected", [bool(run["matched"]) for run in usable]),
        "informational": ("signal", [bool(run["signals"]) for run in usable]),
    }
    word, found = tests[cell["strictness"]]
    return f"{word} {sum(found)}/{len(cell['runs'])}"

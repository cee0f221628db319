"""`python -m studies [PART ...] [--model NAME ...]`: measure, then write results and docs/guards.md.

    measure    make and evaluate every subject; what was done before is not done again
    results    rates of each model, and thresholds with their curves, from what was measured
    coverage   of the interval that gates
    known      answers that are known
    docs       docs/guards.md and its pictures from the results

Without a part, all of them in this order.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from evpack.errors import EvpackError
from studies import results
from studies.ground import Ground, home
from studies.judged import is_measured, measure
from studies.models import MODELS, Studied, named, tuned_for
from studies.page import write_page
from studies.subjects import Subject, subjects
from studies.table import Row, rows

PARTS = ("measure", "results", "coverage", "known", "docs")


@dataclass(frozen=True)
class Case:
    """A model that was set up, with its subjects."""

    studied: Studied
    ground: Ground
    subjects: Sequence[Subject]

    @classmethod
    def of(cls, name: str) -> Case:
        """Set the model up, which takes minutes the first time."""
        studied, place = named(name), home()
        ground = Ground.prepare(studied.find(place), place)
        tuned = tuned_for(ground.model, ground.model_plan.id, place, tell)
        found = subjects(ground.baseline, ground.model_plan.id, tuned, ground.model.runs, studied.counts)
        return cls(studied, ground, found)

    @property
    def pools(self) -> list[Subject]:
        """Subjects for the coverage of intervals."""
        return [subject for subject in self.subjects if subject.kind == "pool"]


def tell(line: str) -> None:
    """A line for whoever waits."""
    print(line, flush=True)


def measure_all(case: Case) -> None:
    """Evaluate what was not evaluated before."""
    name, began = case.ground.model.name, time.process_time()
    for index, subject in enumerate(case.subjects):
        seconds = measure(case.ground, subject)
        if seconds is not None:
            where = f"{subject.id} {subject.family} {subject.place[:40]}"
            tell(f"{name} {index + 1}/{len(case.subjects)} {where}: {seconds:.1f} s")
    tell(f"{name}: {time.process_time() - began:.0f} CPU seconds")


def write_results(cases: Sequence[Case]) -> None:
    """Rates by model, thresholds over all, of what was measured so far."""
    everything: list[Row] = []
    for case in cases:
        measured = [s for s in case.subjects if s.kind != "pool" and is_measured(case.ground, s)]
        found = list(rows(case.ground, measured, case.ground.policy))
        everything += found
        results.write(
            f"model_{case.ground.model.name}", results.model_results(case.ground, case.studied, measured, found)
        )
    results.write("thresholds", results.threshold_results(everything, cases[0].ground.policy))


def main(arguments: list[str]) -> int:
    """Exit code: 0, or that of the error that ended the study."""
    logging.getLogger("evpack").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(
        prog="python -m studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", action="append", help=f"of {', '.join(MODELS)} (default: all)")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}")
    parts = chosen.parts or list(PARTS)
    try:
        if set(parts) - {"docs"}:
            _study([Case.of(name) for name in chosen.model or MODELS], parts)
        if "docs" in parts:
            write_page()
    except EvpackError as error:
        print(error.diagnostics(), file=sys.stderr)
        return int(error.exit_code)
    return 0


def _study(cases: Sequence[Case], parts: Sequence[str]) -> None:
    with_pools = [(case.ground, case.pools) for case in cases if case.pools]
    if "measure" in parts:
        for case in cases:
            measure_all(case)
    if "results" in parts:
        write_results(cases)
    if "coverage" in parts:
        results.write("coverage", results.coverage_results(with_pools))
    if "known" in parts:
        results.write("known_answers", results.known_results([(case.ground, case.pools) for case in cases]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

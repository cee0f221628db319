"""A stand-in step that has campaigns evaluate together, whatever held one of them up before.

No preset is ready before those of all campaigns are at work and all variants are made. EVPACK_TOGETHER names the runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from evpack.plan.model import StepType, load_plan
from evpack.rundir import RunDir
from evpack.steps.base import StepContext
from evpack.steps.state import read_marker
from studies.scheduling import sham_step
from tests.waiting import until

TOGETHER_ENV = "EVPACK_TOGETHER"
REAL = sham_step.pause


def at_work(run: RunDir, step_id: str) -> Path:
    """A file that is there as soon as the step works."""
    return run.root / "at_work" / step_id


def is_ready(run: RunDir) -> bool:
    """Whether nothing but the presets' end is missing to a campaign's evaluations."""
    if not run.plan.is_file():
        return False
    plan = load_plan(run)
    presets, variants = plan.steps_of(StepType.DERIVE_PRESET), plan.steps_of(StepType.CREATE)
    return all(at_work(run, step.id).exists() for step in presets) and all(
        read_marker(run, step.id) for step in variants
    )


def work(ctx: StepContext) -> list[Path]:
    if ctx.step.type is StepType.DERIVE_PRESET:
        mark = at_work(ctx.run, ctx.step.id)
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        runs = [RunDir(ctx.run.root.with_name(name)) for name in os.environ[TOGETHER_ENV].split(",")]
        until(lambda: all(is_ready(run) for run in runs))
    return REAL(ctx)


if __name__ == "__main__":
    sham_step.pause = work
    sys.exit(sham_step.step(sys.argv[1:]))

"""Stands for `evpack step`: everything around a step is real (needs, markers, leases, records), its work is a pause.

The pause is the formula's, times the first number of EVPACK_STUDY_SCALES for steps on devices and the second for all
others; with 0 a step ends at once. A variant is as many kB as the plan has GB for it, so that its budget can be seen.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from evpack.checkpoint.delta import DELTA_FILE, VARIANT_FILE
from evpack.files import write_json
from evpack.plan.memory import SCORING
from evpack.plan.model import StepType
from evpack.publishing import write_atomic
from evpack.runtime.leases import lease_devices
from evpack.steps import runner, variants
from evpack.steps.base import StepContext, StepFunction

SCALES_ENV = "EVPACK_STUDY_SCALES"
SHAM_GB = 1000.0
"""Bytes that stand for a GB of a variant."""


def pause(ctx: StepContext) -> list[Path]:
    """Wait, and publish from when to when: on devices a time in which they are certainly held."""
    begin = time.time()
    scales = json.loads(os.environ.get(SCALES_ENV, "[0, 0]"))
    scale = scales[0 if ctx.step.type in SCORING else 1]
    if scale:
        from studies.scheduling.durations import Host, by_formula
        from studies.scheduling.shapes import FULL

        time.sleep(scale * by_formula(ctx.plan, ctx.settings, FULL, Host())(ctx.step).seconds)
    if ctx.step.type is StepType.CREATE:
        return [_variant(ctx)]
    target = ctx.run.root / "sham" / ctx.step.id
    write_json(target, {"begin": begin, "end": time.time()})
    return [target]


def _variant(ctx: StepContext) -> Path:
    place = ctx.run.model(ctx.step.model or "").variant(ctx.step.scenario or "")
    write_atomic(place / DELTA_FILE, bytes(round(ctx.step.variant_gb * SHAM_GB)))
    write_atomic(place / VARIANT_FILE, b"{}\n")
    return place


def _pause_for(_type: object) -> StepFunction:
    return pause


def step(arguments: Sequence[str]) -> int:
    """`evpack step` with these arguments; its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["step"])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("step_id")
    parser.add_argument("--try", dest="attempt", type=int, default=1)
    parser.add_argument("--dag-run")
    given = parser.parse_args(arguments)
    runner._function = _pause_for
    variants.GB = SHAM_GB
    return runner.main_step(given.run_dir, given.step_id, given.attempt, given.dag_run, lease_devices)


if __name__ == "__main__":
    sys.exit(step(sys.argv[1:]))

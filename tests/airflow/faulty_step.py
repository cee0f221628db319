"""A stand-in step that fails as it is told: EVPACK_FAULTS names a file with what each attempt of a step does.

`{step id: [behaviour of the first attempt, of the second ...]}`; an attempt beyond the list works. A device that it
names is sick.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from evpack.errors import OutOfMemory, Transient
from evpack.steps.base import StepContext
from evpack.steps.state import read_attempts
from studies.scheduling import sham_step

REAL = sham_step.pause


def work(ctx: StepContext) -> list[Path]:
    faults = json.loads(Path(os.environ["EVPACK_FAULTS"]).read_text())
    if not faults.keys().isdisjoint(ctx.leased.devices):
        raise RuntimeError("CUDA error: device-side assert triggered")
    done = [record for record in read_attempts(ctx.run, ctx.step.id) if record["class"] not in ("running", "no_device")]
    behaviours = faults.get(ctx.step.id, [])
    match behaviours[len(done)] if len(done) < len(behaviours) else "work":
        case "transient":
            raise Transient("the network is away")
        case "memory":
            raise OutOfMemory(f"no memory for {ctx.batch}")
        case "defect":
            raise TypeError("this cannot work")
        case "hang":
            time.sleep(600)
    if ctx.batch is not None:
        (ctx.run.root / f"{ctx.step.id}.batch").write_text(str(ctx.batch))
    return REAL(ctx)


if __name__ == "__main__":
    sham_step.pause = work
    sys.exit(sham_step.step(sys.argv[1:]))

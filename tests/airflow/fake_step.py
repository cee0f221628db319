"""Stands for `evpack step`: publishes a line and its marker, or fails with the step's code in FAKE_STEP_FAILS."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.steps.state import read_marker, write_marker

parser = argparse.ArgumentParser()
parser.add_argument("run_dir", type=Path)
parser.add_argument("step_id")
parser.add_argument("--try", dest="attempt", type=int)
parser.add_argument("--dag-run")
options = parser.parse_args()

run = RunDir(options.run_dir)
step = load_plan(run).step(options.step_id)
code = json.loads(os.environ.get("FAKE_STEP_FAILS", "{}")).get(step.id, 0)
missing = [need for need in step.needs if read_marker(run, need) is None]
print(f"fake {step.id} try {options.attempt}: {code or ('blocked' if missing else 'done')}")
if code or missing:
    sys.exit(code or 14)
output = run.root / "fake" / step.id
output.parent.mkdir(exist_ok=True)
output.write_text(f"{options.dag_run} {options.attempt}\n", encoding="utf-8")
write_marker(run, step, input_digest="fake", published=[output], dag_run=options.dag_run, attempt=options.attempt)

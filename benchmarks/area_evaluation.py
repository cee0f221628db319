"""Area evaluation: what scoring and guards cost beyond the forward passes they cannot do without.

All figures are CPU seconds of one process with one thread, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from evpack.assets.demo import demo_pins
from evpack.home import Home
from evpack.plan.model import load_plan
from evpack.rundir import RunDir

GUARDS = "invariants,spectral,rmt,variance,invariants"
_BARE = """
import sys
import torch
from transformers import AutoModelForCausalLM
from safetensors.torch import load_file
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokens = load_file(sys.argv[2])["tokens"][:64].long()
with torch.inference_mode():
    for start in list(range(0, len(tokens), 16)) * int(sys.argv[3]):
        ids = tokens[start:start + 16]
        logits = model(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
"""
"""The forward passes of some runs of the fixture and nothing else."""
_FURTHER = 12
"""Runs of the longer step: what one more costs is the difference to a step of one run, shared out."""


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        rows = _step_rows(Path(folder))
        model = Home.locate().models / demo_pins().model.name
        return [*(_demo_rows(Path(folder)) if model.is_dir() else []), *rows]


def _step_rows(folder: Path) -> list[Row]:
    """The evaluate step of the fixture, as a process, beside a bare script."""
    one, many = (_evaluated(folder / f"runs{runs}", "fixture", "quant_clean", runs) for runs in (1, 1 + _FURTHER))
    run = RunDir(folder / "runs1")
    place = run.model(load_plan(run).models[0].name)
    script = folder / "bare.py"
    script.write_text(_BARE)
    command = [sys.executable, str(script), str(place.baseline), str(place.windows / "tokens.safetensors")]
    bare, long = (_usage([*command, str(runs)], {}) for runs in (1, 1 + _FURTHER))
    return [
        Row("evaluate, fixture, 32 + 32 windows, all guards", one[0], "CPU s", 1.4, "at most", bare[0], "bare script"),
        Row("its memory above the bare script's", (one[1] - bare[1]) / 1e6, "MB", 150, "at most"),
        Row(
            "every further run of the step",
            (many[0] - one[0]) / _FURTHER,
            "CPU s",
            1.15,
            "at most",
            (long[0] - bare[0]) / _FURTHER,
            "its forward passes, alone in the bare script",
        ),
    ]


def _demo_rows(folder: Path) -> list[Row]:
    """Scoring and guards of the demo model within one process."""
    import torch

    from evpack.data.windows import WindowSet
    from evpack.evaluation.scoring import prepare_process, score_windows
    from evpack.guards.hooks import Listener
    from evpack.guards.hooks_records import evenly_spaced
    from evpack.guards.spectral_measure import measure_subject

    root = folder / "demo"
    _evaluated(root, "demo", "quant_clean", 1, until="create")
    run = RunDir(root)
    plan = load_plan(run).models[0]
    place = run.model(plan.name)
    prepare_process("throughput")
    torch.set_num_threads(1)
    from evpack.catalog.policy import Policy
    from evpack.checkpoint.delta import DeltaCheckpoint
    from evpack.checkpoint.loading import load_model
    from evpack.checkpoint.profile import open_baseline

    baseline = open_baseline(place)
    subject = DeltaCheckpoint(baseline, place.variant("quant_clean"))
    model, _ = load_model(subject, torch.float32)
    windows = WindowSet.load(place.windows)
    tokens = windows.run_tokens(windows.runs[0])
    listener = Listener(evenly_spaced(len(tokens), 8))

    def listening() -> None:
        with listener.attached(model):
            score_windows(model, tokens, plan.batch, windows.predicted)

    score_windows(model, tokens[: plan.batch], plan.batch, windows.predicted)  # first calls allocate
    bare = _cpu(lambda: _bare_loop(model, tokens, plan.batch))
    scored = _cpu(lambda: score_windows(model, tokens, plan.batch, windows.predicted))
    heard = _cpu(listening)
    policy = Policy.parse(run.policy.read_bytes())
    spectral = _cpu(lambda: measure_subject(subject, baseline, policy))
    return [
        Row("scoring, demo model: bare loop's CPU time over ours", bare / scored, "", 0.9, "at least"),
        Row(
            "guard chain on top of scoring, demo model",
            (heard - scored + spectral) / scored,
            "",
            0.6,
            "at most",
            note=f"scoring {scored:.1f} CPU s, listening {heard - scored:.1f}, matrices {spectral:.1f}",
        ),
    ]


def _bare_loop(model: Any, tokens: Any, batch: int) -> None:
    import torch

    with torch.inference_mode():
        for start in range(0, len(tokens), batch):
            ids = torch.from_numpy(tokens[start : start + batch]).long()
            logits = model(input_ids=ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _evaluated(root: Path, suite: str, scenario: str, runs: int, until: str = "evaluate") -> tuple[float, int]:
    """Plan a campaign and run the steps of one cell; CPU seconds and peak bytes of the last."""
    settings = {"PACK_GUARDS_ORDER": GUARDS, "CLEAN_EDIT_RUNS": str(runs), "DRIFT_CALIBRATION_RUNS": str(runs)}
    environ = settings | {"INVARLOCK_PREVIEW_WINDOWS": "32", "INVARLOCK_FINAL_WINDOWS": "32"}
    command = [sys.executable, "-m", "evpack.cli.main"]
    _usage([*command, "plan", "--suite", suite, "--out", str(root), "-p", f"scenarios={scenario}"], environ)
    model = load_plan(RunDir(root)).models[0].name
    steps = [f"{model}.{name}" for name in ("setup_baseline", "calibrate", "derive_preset", f"{scenario}.create")]
    if until == "evaluate":
        steps.append(f"{model}.{scenario}.evaluate")
    used = (0.0, 0)
    for step in steps:
        used = _usage([*command, "step", str(root), step], environ)
    return used


def _cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _usage(command: Sequence[str], environ: dict[str, str]) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a command that must succeed."""
    one = {"OMP_NUM_THREADS": "1", "EVPACK_THREADS": "1"}
    process = subprocess.Popen(
        command, env=dict(os.environ) | one | environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return usage.ru_utime + usage.ru_stime, int(usage.ru_maxrss) * 1024

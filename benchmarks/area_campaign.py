"""Area campaign: what a newcomer waits for, measured from a bare clone with an empty home."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.rows import ROOT, Row
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.steps.state import read_attempts


@dataclass(frozen=True)
class Span:
    """One finished attempt of a step, seconds since the epoch."""

    step: str
    start: float
    end: float


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        clone = Path(folder) / "project"
        subprocess.run(["git", "clone", "-q", str(ROOT.parent), str(clone)], check=True)
        home = Path(folder) / "home"
        home.mkdir()
        started = time.monotonic()
        set_up = _timed(clone, home, "make", "venv")
        assets = _timed(clone, home, ".venv/bin/evpack", "assets", "demo")
        campaign = _timed(clone, home, ".venv/bin/evpack", "campaign", "run", "--suite", "demo")
        demo = time.monotonic() - started
        run = RunDir(next((clone / ".evpack" / "runs" / "evidence_campaign").iterdir()))
        rows = _campaign_rows(run, demo, set_up, assets, campaign)
        tests = _timed(clone, home, "make", "test")
        pack_bytes = sum(path.stat().st_size for path in run.pack.rglob("*") if path.is_file())
        rows += [
            Row("make test, set-up done", tests, "s", 900, "at most"),
            Row("evidence pack of the demo campaign", pack_bytes / 1e6, "MB", 5, "at most"),
        ]
        return rows


def _timed(clone: Path, home: Path, *command: str) -> float:
    """Wall seconds of a command that must succeed."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith(("EVPACK_", "PACK_", "VIRTUAL_ENV"))}
    environ = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "EVPACK_HOME": str(clone / ".evpack")}
    started = time.monotonic()
    subprocess.run(command, cwd=clone, env=environ, check=True)
    return time.monotonic() - started


def _campaign_rows(run: RunDir, demo: float, set_up: float, assets: float, campaign: float) -> list[Row]:
    spans, peak = _spans(run)
    critical = critical_path_seconds(spans)
    allowed = 0.2 * critical + 60
    peak_step = max(peak, key=lambda name: peak[name])
    return [
        Row(
            "make demo from a bare clone",
            demo,
            "s",
            720,
            "at most",
            note=f"set-up {set_up:.0f} s, model and text {assets:.0f} s",
        ),
        Row("the campaign itself", campaign, "s", 420, "at most"),
        Row("peak memory of any step", peak[peak_step] / 1e9, "GB", 3, "at most", note=peak_step),
        Row(
            "orchestration: campaign wall beyond the steps on the critical path",
            campaign - critical,
            "s",
            allowed,
            "at most",
            note=f"critical path {critical:.0f} s; allowed 20 % of it plus 60 s",
        ),
    ]


def _spans(run: RunDir) -> tuple[list[Span], dict[str, int]]:
    """Finished attempts and the peak memory in bytes, by step."""
    spans, peak = [], {}
    for step in load_plan(run).steps:
        for record in read_attempts(run, step.id):
            if record["seconds"] is None:
                continue
            end = datetime.fromisoformat(record["ended_at"]).timestamp()
            spans.append(Span(step.id, end - record["seconds"], end))
            peak[step.id] = max(peak.get(step.id, 0), record["peak_rss_bytes"])
    return spans, peak


def critical_path_seconds(spans: list[Span]) -> float:
    """Seconds of the steps on the critical path as it was executed.

    Walks back from the step that ended last; before each step stands the one that ended latest before it started
    (what it waited for, a need or a free slot).
    """
    total, current = 0.0, max(spans, key=lambda span: span.end)
    while True:
        total += current.end - current.start
        earlier = [span for span in spans if span.end <= current.start + 1.0 and span.start < current.start]
        if not earlier:
            return total
        current = max(earlier, key=lambda span: span.end)

"""A campaign on the screen: live progress, the verdict table, the closing lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evpack.errors import BadInput, CampaignExit
from evpack.home import Home
from evpack.plan.model import CampaignPlan, load_plan
from evpack.rundir import RunDir
from evpack.runtime.outcome import Outcome
from evpack.runtime.progress import Estimate, ModelProgress, read_progress
from evpack.runtime.results import Row, verdict_rows
from evpack.steps.plan import check_mode
from evpack.steps.replan import shortages
from evpack.steps.state import errors

QUIET_S = 30.0
"""Without a terminal a line is printed when something changes, and at least this often."""

RUINED = 1000.0
"""From this ratio on, decimals say nothing."""

_TABLE_WIDTH = 160
"""Columns of the table where the output is no terminal and has no width of its own."""


def console() -> Console:
    """Standard output; wide enough for the tables when it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=_TABLE_WIDTH, highlight=False, color_system=None)


@dataclass
class LiveView:
    """Progress while a campaign runs: a table that is redrawn, or timestamped lines. A context manager."""

    run: RunDir
    screen: Console
    _started: float = field(default_factory=time.monotonic)
    _estimate: Estimate = field(default_factory=Estimate)
    _plan: CampaignPlan | None = None
    _live: Live | None = None
    _last: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> LiveView:
        if self.screen.is_terminal:
            self._live = Live(console=self.screen, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self) -> None:
        """Look at the run directory and show what changed."""
        if self._plan is None:
            if not self.run.plan.is_file():
                self._show([], "planning")
                return
            self._plan = load_plan(self.run)
        models = read_progress(self.run, self._plan)
        left = self._estimate.update(models)
        eta = f", about {_clock(left)} left" if left else ""
        self._show(models, f"elapsed {_clock(time.monotonic() - self._started)}{eta}")

    def _show(self, models: Sequence[ModelProgress], footer: str) -> None:
        if self._live is not None:
            self._live.update(Group(_progress_table(models), *_waits(models), Text(footer, style="dim")))
            return
        text = "; ".join(map(_line, models)) or footer
        now = time.monotonic()
        if text != self._last[0] or now - self._last[1] >= QUIET_S:
            self._last = (text, now)
            suffix = f" ({footer})" if models else ""
            print(f"[{datetime.now():%H:%M:%S}] {text}{suffix}", flush=True)


def show_outcome(run: RunDir, outcome: Outcome, screen: Console) -> None:
    """The verdict table, what failed, the pack, the verifier's outcome."""
    if run.plan.is_file() and run.policy.is_file():
        plan = load_plan(run)
        rows = verdict_rows(run, plan)
        screen.print(_verdict_table(rows))
        screen.print("Of several runs the one nearest to breaking its expectation is shown.", style="dim")
        for row in rows:
            if row.problem:
                screen.print(Text(f"missing: {row.model}, {row.scenario}: {row.problem}"))
        failed = [entry for entry in errors(run, plan) if not run.marker(entry["task_id"]).is_file()]
        for entry in {entry["task_id"]: entry for entry in failed}.values():
            screen.print(Text(f"failed: {entry['task_id']}: {entry['error_type']}: {entry['error_msg']}"))
    screen.print(Text(f"run directory: {run.root}"))
    screen.print(Text(f"evidence pack: {outcome.pack or 'none'}"))
    if outcome.verification is not None:
        checked = outcome.verification
        level = checked.get("evidence_level")
        screen.print(Text(f"verifier: {checked.get('outcome')} (exit {checked.get('exit')}), evidence level {level}"))
        screen.print(Text(f"signed by: {checked.get('signer_fingerprint') or 'nobody'}"))
    for problem in outcome.problems:
        screen.print(Text(f"incomplete: {problem}"))
    if run.disk_pressure.is_file() and outcome.exit is CampaignExit.INCOMPLETE:
        screen.print(Text("stopped for lack of disk space: make room, then resume (state/disk_pressure.json)"))
    screen.print(Text(f"Verdict: {outcome.exit.name}", style="bold"))


def show_calibration(run: RunDir, outcome: Outcome, screen: Console) -> None:
    """What a run that only calibrated left."""
    if run.plan.is_file():
        show_progress(run, load_plan(run), screen)
    screen.print(Text(f"presets: {run.presets}"))
    for problem in outcome.problems:
        screen.print(Text(f"incomplete: {problem}"))
    word = "INCOMPLETE" if outcome.problems else _what_follows(run)
    screen.print(Text(f"Calibration: {word}", style="bold"))


def _what_follows(run: RunDir) -> str:
    try:
        check_mode(run, "run-only")
    except BadInput as error:
        return f"done; {error.diagnostics()}"
    return f"done; go on with: evpack campaign run --run-only --output-dir {run.root}"


def show_progress(run: RunDir, plan: CampaignPlan, screen: Console) -> None:
    """Progress once, for `status`."""
    models = read_progress(run, plan)
    screen.print(_progress_table(models), *_waits(models))


def show_lanes(run: RunDir, home: Home, screen: Console) -> None:
    """Models that changed their lane, and those that ran out of memory since."""
    if not run.plan.is_file():
        return
    plan = load_plan(run)
    for change in plan.lane_changes:
        screen.print(Text(change.text()))
    for shortage in shortages(run, plan, home):
        screen.print(Text(shortage.text()))


def _verdict_table(rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    several = len({row.model for row in rows}) > 1
    columns = ("model",) * several + ("scenario", "edit", "ratio", "95 % interval", "guards", "expected", "got", "")
    for name in columns:
        table.add_column(name, justify="right" if name in ("ratio", "95 % interval") else "left", overflow="fold")
    for row in rows:
        cells = (
            row.scenario,
            row.edit,
            "-" if row.ratio is None else figure(row.ratio),
            "-" if row.interval is None else f"[{figure(row.interval[0])}, {figure(row.interval[1])}]",
            row.guards,
            row.expected,
            row.got,
            "ok" if row.met else "NOT MET",
        )
        table.add_row(*(Text(cell) for cell in (row.model,) * several + cells))
    return table


def _progress_table(models: Sequence[ModelProgress]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("model", "preparation", "cells done", "running", "failed"):
        table.add_column(name)
    for model in models:
        cells = (
            model.label,
            model.preparation,
            f"{model.done}/{model.cells}",
            ", ".join(model.running) or "-",
            ", ".join(model.failed) or "-",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _waits(models: Sequence[ModelProgress]) -> list[Text]:
    """What stands still without having failed."""
    return [Text(f"{model.label}: {model.held_up}") for model in models if model.held_up]


def _line(model: ModelProgress) -> str:
    preparation = "" if model.preparation == "ready" else f" {model.preparation},"
    counts = f"cells {model.done}/{model.cells} done, {len(model.running)} running, {len(model.failed)} failed"
    running = f": {', '.join(model.running)}" if model.running else ""
    waits = f"; {model.held_up}" if model.held_up else ""
    return f"{model.label}{preparation} {counts}{running}{waits}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def figure(ratio: float) -> str:
    """Four decimals while they mean something, three digits of a ruined model's ratio."""
    return f"{ratio:.4f}" if ratio < RUINED else f"{ratio:.3g}"

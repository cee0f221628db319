"""Completion markers and attempt records: the only state of a campaign besides its results.

One marker per finished step (written last) and one record per attempt (one writer each). Progress and
error summaries are derived from them, so that no file has two writers.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evpack.errors import NO_MEMORY, WAITING, EvidenceError, StepExit
from evpack.files import digest_json, read_json, sha256_file, utc_now, write_json
from evpack.plan.memory import SCORING
from evpack.plan.model import CampaignPlan, StepPlan
from evpack.processes import lives, start_of
from evpack.rundir import RunDir
from evpack.steps.base import Leased

MARKER_SCHEMA = "evpack_step_marker_v1"
ATTEMPT_SCHEMA = "evpack_step_attempt_v1"
REHASH_LIMIT = 1 << 20
"""Outputs up to this many bytes are hashed again when a marker is checked; larger ones by size only."""

_WAITING = frozenset(exit_.name.lower() for exit_ in WAITING)

MAX_BATCH_HALVINGS = 2
"""An out-of-memory retry halves the batch at most this often."""


@dataclass(frozen=True)
class Marker:
    """A finished step: what it was made from and what it made."""

    step: str
    input_digest: str
    outputs: dict[str, dict[str, Any]]
    """``{path relative to the run directory: {sha256, bytes}}``; the digest of large weights is null."""
    dag_run: str | None
    attempt: int
    finished_at: str

    def outputs_digest(self) -> str:
        """Digest of what the step made; part of the input digest of those who need it."""
        return digest_json({path: entry["sha256"] for path, entry in self.outputs.items()})

    def intact(self, run: RunDir, but_for: Collection[str] = ()) -> bool:
        """Whether every output, but for some, is still there and unchanged (large ones: by size)."""
        for name, entry in self.outputs.items():
            if name in but_for:
                continue
            path = run.root / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                return False
            if entry["bytes"] <= REHASH_LIMIT and sha256_file(path) != entry["sha256"]:
                return False
        return True


def read_marker(run: RunDir, step_id: str) -> Marker | None:
    """The marker of a step, or None when it has none or an unreadable one (then the step is not finished)."""
    try:
        value = read_json(run.marker(step_id))
        return Marker(
            step=value["step"],
            input_digest=value["input_digest"],
            outputs=value["outputs"],
            dag_run=value["dag_run"],
            attempt=value["try"],
            finished_at=value["finished_at"],
        )
    except (FileNotFoundError, EvidenceError, KeyError, TypeError):
        return None


def write_marker(
    run: RunDir, step: StepPlan, *, input_digest: str, published: Iterable[Path], dag_run: str | None, attempt: int
) -> Marker:
    """Hash what a step published and write its marker.

    Large tensor files are not read once more for it: variant.json, model_profile.json and schedule.json name the digest
    of every tensor, whoever reads one holds it against that, and those descriptions are hashed here.

    Raises:
        FileNotFoundError: when a published path does not exist.
        ValueError: when one lies outside the run directory.
    """
    outputs: dict[str, dict[str, Any]] = {}
    for path in published:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(run.root).as_posix()
            size = file.stat().st_size
            described = size > REHASH_LIMIT and file.suffix == ".safetensors"
            outputs[name] = {"sha256": None if described else sha256_file(file), "bytes": size}
    marker = Marker(step.id, input_digest, outputs, dag_run, attempt, utc_now())
    value = {
        "schema": MARKER_SCHEMA,
        "step": marker.step,
        "input_digest": marker.input_digest,
        "outputs": marker.outputs,
        "dag_run": marker.dag_run,
        "try": marker.attempt,
        "finished_at": marker.finished_at,
    }
    write_json(run.marker(step.id), value)
    return marker


def archive_outputs(run: RunDir, marker: Marker) -> Path:
    """Move a step's old outputs below archive/ and drop its marker (marker first: a kill in between leaves no lie)."""
    target = run.archive / marker.step / f"try{marker.attempt}-{uuid.uuid4().hex[:8]}"
    target.mkdir(parents=True)
    run.marker(marker.step).replace(target / "marker.json")
    for name in marker.outputs:
        source = run.root / name
        if source.is_file() or source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target / name)
            _remove_empty(source.parent, run.root)
    return target


def _remove_empty(directory: Path, stop: Path) -> None:
    while directory != stop and directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
        directory = directory.parent


@dataclass
class Attempt:
    """One attempt of a step. Written when it starts and rewritten, by the same process, when it ends."""

    run: RunDir
    step: str
    number: int
    dag_run: str | None
    lane: str | None = None
    """The lane its step was in; None for campaign-level steps."""
    leased: Leased | None = None
    """The devices it holds, once it has them."""
    started_at: str = field(default_factory=utc_now)
    started_unix: float = field(default_factory=time.time)
    """The same exactly: for pictures, and for the order of attempts within a second."""
    _peak: int = 0
    _clock: float = field(default_factory=time.monotonic)
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def begin(self) -> None:
        """Record that the attempt runs."""
        self._write({"exit": None, "class": "running", "ended_at": None, "seconds": None, "error": None})

    def begin_on(self, leased: Leased) -> None:
        """Record that the attempt runs and which devices it holds."""
        self.leased = leased
        self.begin()

    def was_elsewhere(self, leased: Leased | None, peak_rss_bytes: int) -> None:
        """Take note of what a process elsewhere held and needed; written with the end."""
        self.leased, self._peak = leased, peak_rss_bytes

    def end(self, exit_: StepExit, error: str | None) -> None:
        """Record how the attempt ended."""
        self._write(
            {
                "exit": int(exit_),
                "class": exit_.name.lower(),
                "ended_at": utc_now(),
                "seconds": round(time.monotonic() - self._clock, 3),
                "error": error,
            }
        )

    def _write(self, end: dict[str, Any]) -> None:
        value = {
            "schema": ATTEMPT_SCHEMA,
            "step": self.step,
            "try": self.number,
            "dag_run": self.dag_run,
            "lane": self.lane,
            "started_at": self.started_at,
            "started_unix": self.started_unix,
            "peak_rss_bytes": self._peak or peak_rss_bytes(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_start": start_of(os.getpid()),
            "leased": asdict(self.leased) if self.leased else None,
            **end,
        }
        write_json(self.run.attempts(self.step) / f"{self.number:03d}-{self._name}.json", value)


def peak_rss_bytes() -> int:
    """Largest resident set of this process and of any child it waited for, bytes."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return int(max(own, children)) * 1024


def read_attempts(run: RunDir, step_id: str) -> list[dict[str, Any]]:
    """All readable attempt records of a step, oldest first."""
    records = []
    directory = run.attempts(step_id)
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        with contextlib.suppress(EvidenceError, FileNotFoundError):
            records.append(read_json(path))
    return sorted(records, key=lambda record: (record["started_at"], record.get("started_unix", 0), record["try"]))


def close_dead_attempts(run: RunDir, step_id: str, exit_: StepExit, why: str) -> list[str]:
    """Write the end of attempts whose process of this host is gone without having written it.

    Args:
        exit_: the class that whoever saw the process end gave it.
        why: how it ended, in words.

    Returns:
        The devices that these held.
    """
    devices: list[str] = []
    directory = run.attempts(step_id)
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        with contextlib.suppress(EvidenceError, FileNotFoundError):
            record = read_json(path)
            if record["class"] == "running" and not _alive(record):
                end = {"exit": int(exit_), "class": exit_.name.lower(), "ended_at": utc_now(), "error": why}
                write_json(path, {**record, **end})
                devices += (record.get("leased") or {}).get("devices", ())
    return devices


def lowered_batch(run: RunDir, plan: CampaignPlan, step: StepPlan) -> int | None:
    """Windows per forward pass after out-of-memory attempts in the step's lane, None when there were none."""
    halvings = _memory_failures(run, plan, step)
    if not halvings or step.model is None:
        return None
    return max(1, plan.model(step.model).batch >> min(halvings, MAX_BATCH_HALVINGS))


def memory_try_left(run: RunDir, plan: CampaignPlan, step: StepPlan) -> bool:
    """Whether a step that ran out of memory is tried again: at most twice, and scoring only with a smaller batch."""
    failures = _memory_failures(run, plan, step)
    if failures > MAX_BATCH_HALVINGS:
        return False
    if step.type not in SCORING or step.model is None:
        return True
    batch = plan.model(step.model).batch
    return max(1, batch >> failures) < max(1, batch >> max(0, failures - 1))


def out_of_memory(run: RunDir, plan: CampaignPlan, step: StepPlan) -> bool:
    """Whether a step's last attempt ran out of memory in the lane it is in, with no smaller batch left to try."""
    if run.marker(step.id).is_file():
        return False
    records = [record for record in read_attempts(run, step.id) if record["class"] not in _WAITING]
    return bool(records) and _memory_failed(records[-1], plan, step) and not memory_try_left(run, plan, step)


def lacked_host_memory(run: RunDir, step_id: str) -> bool:
    """Whether the last attempt of a step that ran out of memory lacked the host's, to which devices do not add."""
    ends = [record["exit"] for record in read_attempts(run, step_id) if record["exit"] in NO_MEMORY]
    return ends[-1:] == [StepExit.OUT_OF_HOST_MEMORY]


def _memory_failures(run: RunDir, plan: CampaignPlan, step: StepPlan) -> int:
    return sum(_memory_failed(record, plan, step) for record in read_attempts(run, step.id))


def _memory_failed(record: dict[str, Any], plan: CampaignPlan, step: StepPlan) -> bool:
    """Whether an attempt ran out of memory in the lane that the step is in now; records once named no lane."""
    lane = record.get("lane") or plan.as_planned().step(step.id).lane
    return record["exit"] in NO_MEMORY and lane == step.lane


def step_state(run: RunDir, step_id: str) -> str:
    """``done``, ``running``, ``failed`` or ``waiting``, derived from marker and attempts.

    The last attempt decides, but for one that lives on while a later one has ended already (a killed task's, or where
    the clock was set back meanwhile).
    """
    if run.marker(step_id).is_file():
        return "done"
    attempts = read_attempts(run, step_id)
    if not attempts:
        return "waiting"
    here = [record for record in attempts if record["host"] == socket.gethostname()]
    if any(record["class"] == "running" and _alive(record) for record in here):
        return "running"
    last = attempts[-1]
    if last["class"] in {"ok", *_WAITING}:  # what ended well and has no marker was taken back
        return "waiting"
    if last["class"] != "running":
        return "failed"
    return "running" if _alive(last) else "failed"


def held_up(run: RunDir, step_id: str) -> str | None:
    """Why the last attempt of a step had to wait, None when it had not or the step is done.

    Who waits has not failed and is in no list of errors; what it waits for may never come.
    """
    if run.marker(step_id).is_file():
        return None
    attempts = read_attempts(run, step_id)
    return str(attempts[-1]["error"]) if attempts and attempts[-1]["class"] in _WAITING else None


def running_step(run: RunDir, plan: CampaignPlan) -> str | None:
    """A step whose process is alive, None when there is none."""
    return next((step.id for step in plan.steps if step_state(run, step.id) == "running"), None)


def _alive(record: dict[str, Any]) -> bool:
    """Whether the process of a running attempt exists; on another host it is taken to. Old records name no start."""
    return record["host"] != socket.gethostname() or lives(record["pid"], record.get("pid_start", ""))


def progress(run: RunDir, plan: CampaignPlan) -> dict[str, Any]:
    """The reference's progress.json: counts by state, percentage, status."""
    states = [step_state(run, step.id) for step in plan.steps]
    counts = {name: states.count(name) for name in ("waiting", "running", "done", "failed")}
    total = len(states)
    if counts["done"] == total:
        status = "completed"
    elif counts["running"] or counts["waiting"]:
        status = "running" if counts["running"] or counts["done"] else "initializing"
    else:
        status = "completed_with_failures"
    return {
        "total": total,
        "pending": counts["waiting"],
        "running": counts["running"],
        "completed": counts["done"],
        "failed": counts["failed"],
        "progress_pct": round(100 * counts["done"] / total, 1) if total else 100.0,
        "status": status,
        "updated_at": utc_now(),
    }


def errors(run: RunDir, plan: CampaignPlan) -> list[dict[str, Any]]:
    """The reference's errors.json: one entry per failed attempt."""
    return [
        {
            "task_id": step.id,
            "error_type": record["class"],
            "error_msg": record["error"],
            "timestamp": record["ended_at"],
        }
        for step in plan.steps
        for record in read_attempts(run, step.id)
        if record["class"] not in {"ok", "running", *_WAITING}
    ]

"""Room for variants: what a create step may take of the campaign's budget, and what an evaluation gives back.

Nothing is counted in a file that a killed process could leave wrong. What variants take is what lies on disk, plus
what create steps at work have announced; an announcement is a locked file, and the kernel drops the lock with its
process. Weights go after the last evaluation, unless PACK_KEEP_VARIANTS; variant.json stays, for the pack. A create
step whose weights are gone that way counts as done, and an evaluation that must be redone has them made again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evpack.checkpoint.delta import VARIANT_FILE
from evpack.errors import NoRoom
from evpack.files import GB
from evpack.plan.model import CampaignPlan, StepPlan, StepType, step_id
from evpack.publishing import locked, sweep_beside
from evpack.rundir import RunDir
from evpack.steps.state import Marker, read_marker, step_state


@dataclass(frozen=True)
class _Announced:
    """What a create step at work may come to."""

    bytes: int
    places: tuple[Path, ...]
    """Variants it makes; what already lies there is part of `bytes`."""


@contextmanager
def room_for(run: RunDir, plan: CampaignPlan, step: StepPlan) -> Iterator[None]:
    """Hold a create step's part of the variant budget while the block runs.

    Raises:
        NoRoom: when others take too much of it.
    """
    run.variant_room.mkdir(parents=True, exist_ok=True)
    makes = _makes(run, plan, step)
    key = f"{step.model}.edits" if len(makes) > 1 else step.id
    with locked(run.variant_room_lock):
        handle = _lock(run.variant_room / f"{key}.lock")
        if handle is None:  # the pass that holds it makes this variant too
            announced = None
        else:
            announced = _Announced(
                round(sum(each.variant_gb for each in makes) * GB), tuple(_place(run, each) for each in makes)
            )
            try:
                os.ftruncate(handle, 0)
                for place in announced.places:
                    sweep_beside(place)
                _fit(run, plan, announced)
            except BaseException:
                os.close(handle)
                raise
            document = {"bytes": announced.bytes, "places": [str(place) for place in announced.places]}
            os.pwrite(handle, json.dumps(document).encode(), 0)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def spent(run: RunDir, marker: Marker) -> bool:
    """Whether a create step's result is all there but for weights that were removed."""
    return marker.intact(run, _weights(marker)) and not marker.intact(run)


def is_whole(run: RunDir, step_id: str) -> bool:
    """Whether what a create step made is all there; waits for whoever is removing some."""
    run.variant_room.mkdir(parents=True, exist_ok=True)
    with locked(run.variant_room_lock):
        marker = read_marker(run, step_id)
        return marker is None or marker.intact(run)


def variant_step(plan: CampaignPlan, evaluate: StepPlan) -> StepPlan:
    """The create step of an evaluate step's variant."""
    return plan.step(step_id(StepType.CREATE, evaluate.model, evaluate.scenario))


def release(run: RunDir, plan: CampaignPlan, evaluate: StepPlan) -> None:
    """Remove the weights of an evaluated variant; its description stays."""
    marker = read_marker(run, variant_step(plan, evaluate).id)
    if marker is not None:
        remove_weights(run, marker)


def remove_weights(run: RunDir, marker: Marker) -> None:
    """Remove what a create step made, but for the description."""
    for name in _weights(marker):
        (run.root / name).unlink(missing_ok=True)


def used_bytes(run: RunDir, plan: CampaignPlan, without: Sequence[Path] = ()) -> int:
    """What variants take now or may come to while create steps are at work, bytes; but for those `without`."""
    total, covered = 0, set(without)
    for path in sorted(run.variant_room.glob("*.lock")):
        if (announced := _at_work(path)) is not None:
            total += announced.bytes
            covered |= set(announced.places)
    places = {_place(run, step) for step in plan.steps_of(StepType.CREATE)}
    return total + sum(_bytes_in(place) for place in places - covered)


def _fit(run: RunDir, plan: CampaignPlan, mine: _Announced) -> None:
    if plan.variant_budget_gb is None:
        return
    budget = round(plan.variant_budget_gb * GB)
    if used_bytes(run, plan, mine.places) + mine.bytes <= budget:
        return
    for evaluate in plan.steps_of(StepType.EVALUATE):
        # One that failed has its variant made again when it is tried again; one that is done needs none.
        if step_state(run, evaluate.id) in ("failed", "done"):
            release(run, plan, evaluate)
    used = used_bytes(run, plan, mine.places)
    if used + mine.bytes > budget:
        raise NoRoom(
            f"variants take {used / GB:.3f} GB, {mine.bytes / GB:.3f} GB more may not fit into the budget of "
            f"{plan.variant_budget_gb:g} GB",
            "nothing: the step is tried again when others were evaluated",
        )


def _makes(run: RunDir, plan: CampaignPlan, step: StepPlan) -> list[StepPlan]:
    """The create steps whose variants a step makes: its own, and in one pass all other edits that are not there."""
    if step.edit is None or not plan.model(step.model or "").batch_edits:
        return [step]
    others = [
        other
        for other in plan.steps_of(StepType.CREATE, model=step.model)
        if other.id != step.id
        and other.edit is not None
        and other.edit.status == "selected"
        and not _place(run, other).exists()
    ]
    return [step, *others]


def _weights(marker: Marker) -> list[str]:
    """Outputs of a create step that may go: all but the description."""
    return [name for name in marker.outputs if Path(name).name != VARIANT_FILE]


def _place(run: RunDir, step: StepPlan) -> Path:
    return run.model(step.model or "").variant(step.scenario or "")


def _bytes_in(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*") if directory.is_dir() else ():
        with suppress(FileNotFoundError):
            if file.name != VARIANT_FILE and file.is_file() and not file.is_symlink():
                total += file.stat().st_size
    return total


def _lock(path: Path) -> int | None:
    """An open file, locked until it is closed; None when another process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _at_work(path: Path) -> _Announced | None:
    """What the holder of a lock file announced, None when nobody holds it or it has not yet said."""
    handle = _lock(path)
    if handle is not None:
        os.close(handle)
        return None
    text = path.read_text(encoding="utf-8")
    if not text:
        return None
    found = json.loads(text)
    return _Announced(int(found["bytes"]), tuple(Path(place) for place in found["places"]))

"""The run directory of one campaign. The only module that knows its layout (the reference's, where it applies).

Model names, scenario ids and step ids are validated here before they become paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import BadInput

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,119}")
_STEP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,250}")
RESERVED_NAMES = frozenset(
    {"analysis", "archive", "evidence_pack", "logs", "presets", "reports", "state", "workers", "queue"}
)
"""Directories of a run directory that no model may be named after."""


def model_name(model_id: str) -> str:
    """Directory name of a model id: lower case, ``/`` to ``__``, space to ``_``, all else outside [a-z0-9_-] dropped.

    Raises:
        BadInput: when nothing usable is left or the name is reserved.
    """
    text = model_id.lower().replace("/", "__").replace(" ", "_")
    name = re.sub(r"[^a-z0-9_-]", "", text)
    if not _ID.fullmatch(name) or name in RESERVED_NAMES:
        raise BadInput(
            f"model id {model_id!r} gives the directory name {name!r}, which is empty, too long or reserved",
            "use a model id with letters and digits that is not one of " + ", ".join(sorted(RESERVED_NAMES)),
        )
    return name


def is_id(value: str) -> bool:
    """Whether a value is safe as one path component."""
    return _ID.fullmatch(value) is not None


def checked_id(value: str, what: str) -> str:
    """The value, when it is safe as one path component.

    Raises:
        BadInput: naming the value.
    """
    if not is_id(value):
        raise BadInput(
            f"{what} {value!r} is not a valid id", "use letters, digits, '_' and '-', at most 120 characters"
        )
    return value


@dataclass(frozen=True)
class ModelDir:
    """Paths of one model inside a run directory."""

    root: Path

    @property
    def baseline(self) -> Path:
        """The baseline checkpoint: a directory with config, tokenizer and safetensors (files or links)."""
        return self.root / "models" / "baseline"

    @property
    def profile(self) -> Path:
        """model_profile.json."""
        return self.root / "model_profile.json"

    @property
    def windows(self) -> Path:
        """Tokenised windows and the schedule of all runs: a directory."""
        return self.root / "windows"

    def variant(self, scenario_id: str) -> Path:
        """The variant of a scenario: a directory with delta.safetensors and variant.json."""
        return self.root / "models" / checked_id(scenario_id, "scenario")

    @property
    def calibration(self) -> Path:
        """Calibration reports: run_<k> directories."""
        return self.root / "reports" / "calibration"

    def report(self, scenario_id: str, category: str, run: int) -> Path:
        """Directory of one report: ``reports/<scenario>/run_<n>`` or ``reports/errors/<scenario>``."""
        checked_id(scenario_id, "scenario")
        if category == "error_injection":
            return self.root / "reports" / "errors" / scenario_id
        return self.root / "reports" / scenario_id / f"run_{run}"


@dataclass(frozen=True)
class RunDir:
    """Paths of one campaign."""

    root: Path

    # state
    @property
    def settings(self) -> Path:
        """state/settings.json: the settings frozen by `plan`."""
        return self.root / "state" / "settings.json"

    @property
    def plan(self) -> Path:
        """state/plan.json."""
        return self.root / "state" / "plan.json"

    @property
    def lane_changes(self) -> Path:
        """state/lane_changes.json: models that left the lane they were planned for; absent while none has."""
        return self.root / "state" / "lane_changes.json"

    @property
    def scenarios(self) -> Path:
        """state/scenarios.json: the manifest this campaign uses."""
        return self.root / "state" / "scenarios.json"

    @property
    def policy(self) -> Path:
        """state/policy.json: the resolved tier and profile thresholds this campaign uses."""
        return self.root / "state" / "policy.json"

    @property
    def tuned_edit_params(self) -> Path:
        """state/tuned_edit_params.json."""
        return self.root / "state" / "tuned_edit_params.json"

    @property
    def model_revisions(self) -> Path:
        """state/model_revisions.json: the pins this campaign uses."""
        return self.root / "state" / "model_revisions.json"

    @property
    def reused_presets(self) -> Path:
        """state/reused_presets.json: presets of an earlier campaign, where they take the place of calibration."""
        return self.root / "state" / "reused_presets.json"

    @property
    def source_repo(self) -> Path:
        """state/source_repo.json: provenance collected when the campaign was planned."""
        return self.root / "state" / "source_repo.json"

    @property
    def progress(self) -> Path:
        """state/progress.json, derived."""
        return self.root / "state" / "progress.json"

    @property
    def errors(self) -> Path:
        """state/errors.json, derived."""
        return self.root / "state" / "errors.json"

    @property
    def dag_run(self) -> Path:
        """state/dag_run.json: the DAG run that works here, and the one that planned the campaign."""
        return self.root / "state" / "dag_run.json"

    @property
    def disk_pressure(self) -> Path:
        """state/disk_pressure.json: there while the campaign stands still for lack of disk space."""
        return self.root / "state" / "disk_pressure.json"

    @property
    def variant_room(self) -> Path:
        """Locks of create steps at work, with the space they may take."""
        return self.root / "state" / "variant_room"

    @property
    def variant_room_lock(self) -> Path:
        """Held by whoever looks at the room for variants or takes of it, on whichever host."""
        return self.variant_room / "room"

    def marker(self, step_id: str) -> Path:
        """Completion marker of a step, written last."""
        return self.root / "state" / "steps" / f"{checked_step(step_id)}.json"

    def attempts(self, step_id: str) -> Path:
        """Directory of attempt records of a step, one file per attempt."""
        return self.root / "state" / "attempts" / checked_step(step_id)

    def task_log(self, step_id: str) -> Path:
        """Log of a step, appended to by each attempt."""
        return self.root / "logs" / "tasks" / f"{checked_step(step_id)}.log"

    @property
    def archive(self) -> Path:
        """Results that a redo replaced; never counted by a verdict."""
        return self.root / "archive"

    # results
    @property
    def presets(self) -> Path:
        """calibrated_preset_<model>[__<edit type>].yaml files."""
        return self.root / "presets"

    def preset(self, name: str, edit_type: str | None = None) -> Path:
        """The calibrated preset of a model, or its variant for clean edits of a type."""
        variant = "" if edit_type is None else f"__{checked_id(edit_type, 'edit type')}"
        return self.presets / f"calibrated_preset_{checked_id(name, 'model name')}{variant}.yaml"

    @property
    def reports(self) -> Path:
        """Verdict files and summaries."""
        return self.root / "reports"

    @property
    def final_verdict(self) -> Path:
        """reports/final_verdict.json."""
        return self.reports / "final_verdict.json"

    @property
    def analysis(self) -> Path:
        """Figures about the campaign itself (memory plan, determinism repeats, timeline)."""
        return self.root / "analysis"

    @property
    def pack(self) -> Path:
        """Where the evidence pack goes unless PACK_DIR says otherwise."""
        return self.root / "evidence_pack"

    def model(self, name: str) -> ModelDir:
        """Paths of one model by its directory name."""
        return ModelDir(self.root / checked_id(name, "model name"))

    def first_link(self, path: Path) -> Path | None:
        """The first part of a path below the run directory that is a link; None when all of it is really there."""
        parts = path.relative_to(self.root).parts
        steps = [self.root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        return next((part for part in steps if part.is_symlink()), None)


def checked_step(step_id: str) -> str:
    """The step id, when it is safe as a file name.

    Raises:
        BadInput: naming the value.
    """
    if not _STEP_ID.fullmatch(step_id) or ".." in step_id:
        raise BadInput(f"step id {step_id!r} is not valid", "take a step id from state/plan.json")
    return step_id

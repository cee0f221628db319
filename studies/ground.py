"""A model of the study: set up, calibrated and given its preset by the steps of a campaign, in a run directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.suites import settings_for
from evpack.checkpoint.profile import open_baseline
from evpack.checkpoint.reader import Checkpoint
from evpack.data.preflight import check_source
from evpack.data.windows import WindowSet
from evpack.files import digest_json, write_json
from evpack.guards.hooks import CONTRACT
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords
from evpack.home import Home
from evpack.pack import layout
from evpack.plan.campaign import plan_campaign
from evpack.plan.model import CampaignPlan, ModelPlan, StepPlan, StepType, load_plan
from evpack.rundir import ModelDir, RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.calibrate import calibrate
from evpack.steps.derive_preset import derive_preset
from evpack.steps.guarding import baseline_spectral_file
from evpack.steps.setup_baseline import setup_baseline
from evpack.steps.subject import measured_noop_shift

GUARDS = "invariants,spectral,rmt,variance,invariants"
"""The whole chain, as campaigns run it by default."""
_ANY_FAULT = "nan_injection"
"""Planning wants a scenario; those of the study are laid over the plan later."""


@dataclass(frozen=True)
class StudyModel:
    """A model and how much text it is studied on."""

    name: str
    source: str
    """As an operator writes it: an id that a suite knows, or a directory."""
    suite: str
    text: str | None
    """Directory of the text; None takes the suite's."""
    arm: int
    """Windows per arm of a run."""
    runs: int
    """Disjoint runs of windows, each calibrated; a subject is evaluated on one or more of them."""


@dataclass(frozen=True)
class Ground:
    """A calibrated model; its parts are read from the run directory."""

    model: StudyModel
    home: Home
    run: RunDir
    settings: Settings
    plan: CampaignPlan

    @classmethod
    def prepare(cls, model: StudyModel, home: Home) -> Ground:
        """Plan, set up and calibrate, or find all that done.

        Raises:
            BadInput: model or text are not there.
            DataError: the text has too few windows for the runs.
        """
        params: dict[str, Any] = {
            "suite": model.suite,
            "models": [model.source],
            "scenarios": [_ANY_FAULT],
            "preview_windows": model.arm,
            "final_windows": model.arm,
            "drift_calibration_runs": model.runs,
            "guards_order": GUARDS,
        } | ({"text_path": model.text, "dataset": "text"} if model.text else {})
        settings = settings_for(params, {}, {}, home)
        key = digest_json([params, CONTRACT, _measured_by(settings)])[:8]
        run = RunDir(home.root / "study" / f"{model.name}-{key}")
        plan = load_plan(run) if run.plan.is_file() else _planned(run, settings, home)
        ground = cls(model, home, run, settings, plan)
        write_json(run.policy, ground.policy.to_json())  # the thresholds of today, whenever it was planned
        for type_, work in (
            (StepType.SETUP_BASELINE, setup_baseline),
            (StepType.CALIBRATE, calibrate),
            (StepType.DERIVE_PRESET, derive_preset),
        ):
            done = run.root / f"{type_.value}.done"
            if not done.is_file():
                work(ground.context(plan.steps_of(type_)[0], plan))
                done.touch()
        return ground

    def context(self, step: StepPlan, plan: CampaignPlan) -> StepContext:
        """What a step function is given."""
        return StepContext(self.run, plan, self.settings, step, self.home)

    @property
    def model_plan(self) -> ModelPlan:
        """The model in the plan."""
        return self.plan.models[0]

    @property
    def place(self) -> ModelDir:
        """The model's directory."""
        return self.run.model(self.model_plan.name)

    @cached_property
    def baseline(self) -> Checkpoint:
        """The baseline's checkpoint."""
        return open_baseline(self.place)

    @cached_property
    def windows(self) -> WindowSet:
        """All windows, and the runs."""
        return WindowSet.load(self.place.windows)

    @cached_property
    def policy(self) -> Policy:
        """The shipped thresholds of the suite's tier and profile, as they are now."""
        return resolve_policy(self.settings.tier, self.settings.profile)

    @cached_property
    def spectral(self) -> SpectralRecords:
        """Figures of the baseline's matrices."""
        file = baseline_spectral_file(self.place)
        return SpectralRecords.parse(file.read_bytes(), file.name)

    @cached_property
    def noop_shift(self) -> float:
        """How far the model's no-op of calibration moved the mean log-loss, nats per token."""
        return measured_noop_shift(self.place)

    def calibration(self, run: int, name: str) -> bytes:
        """A file of the calibration of a run."""
        return (self.place.calibration / f"run_{run}" / name).read_bytes()

    def activations(self, run: int) -> ActivationRecords:
        """The baseline's activations on the sampled windows of a run."""
        return ActivationRecords.parse(self.calibration(run, layout.ACTIVATIONS), layout.ACTIVATIONS)


def _planned(run: RunDir, settings: Settings, home: Home) -> CampaignPlan:
    return plan_campaign(run, settings, home, source_repo={}, check_source=check_source)


def _measured_by(settings: Settings) -> dict[str, Any]:
    """Thresholds that enter while figures are taken: with others, everything is measured anew."""
    policy = resolve_policy(settings.tier, settings.profile)
    return {
        key: policy.thresholds[key].value
        for key in policy.thresholds
        if key.startswith(("spectral.norm_collapse.eligible", "spectral.norm_collapse.collapsed", "rmt.windows"))
        or key in ("spectral.scope", "variance.calibration.windows")
    }


def home() -> Home:
    """The deployment's home."""
    return Home.locate(os.environ).create()


def absolute(path: Path) -> str:
    """A path as settings take it."""
    return str(path.absolute())

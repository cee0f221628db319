"""The frozen shapes of a plan. Everything later reads these and adds nothing to them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.scenarios import Category, Scenario
from evpack.errors import BadInput, EvidenceError
from evpack.files import digest_json, first_fault, parse_json, portable
from evpack.plan.lane_changes import LaneChange, LaneChanges
from evpack.plan.lanes import DEVICE_COUNTS, next_lane
from evpack.rundir import RunDir

PLAN_SCHEMA = "evpack_campaign_plan_v1"

_SEAL = ("manifest.json", "checksums.sha256")
"""What only a sealed pack has beside state/."""


class Frozen(BaseModel):
    """Base of all plan parts: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepType(StrEnum):
    """Kinds of steps; the value is the task id in the DAG."""

    SETUP_BASELINE = "setup_baseline"
    CALIBRATE = "calibrate"
    DERIVE_PRESET = "derive_preset"
    CREATE = "create"
    EVALUATE = "evaluate"
    COMPILE_VERDICT = "compile_verdict"
    BUILD_PACK = "build_pack"
    VERIFY_PACK = "verify_pack"

    def reference_name(self, category: str | None = None, *, batch: bool = False) -> str:
        """The reference's task type (as in TASK_TIMEOUT_<TASKTYPE>), upper case.

        Args:
            category: scenario category, which splits create and evaluate into edit and error kinds.
            batch: whether the model's edits are made in one pass.
        """
        if batch and self is StepType.CREATE and category != "error_injection":
            return "CREATE_EDITS_BATCH"
        kind = "ERROR" if category == "error_injection" else "EDIT"
        return {
            StepType.CALIBRATE: "CALIBRATION_RUN",
            StepType.DERIVE_PRESET: "GENERATE_PRESET",
            StepType.CREATE: f"CREATE_{kind}",
            StepType.EVALUATE: f"EVALUATE_{kind}",
        }.get(self, self.value.upper())


CLOSING = (StepType.COMPILE_VERDICT, StepType.BUILD_PACK, StepType.VERIFY_PACK)
"""The campaign's own steps, in their order."""


class ModelSource(Frozen):
    """Where a baseline comes from."""

    kind: Literal["local", "hub"]
    """`local`: a checkpoint directory or GGUF file on this host; `hub`: a repository id with a pinned revision."""
    path: str | None = None
    """Absolute path of a local source."""
    revision: str | None = None
    """Pinned commit of a hub source, or the content digest (``sha256:<hex>``) of a local one."""
    format: Literal["safetensors", "gguf", "pickle"] = "safetensors"
    """What its weights are stored as; all but safetensors are converted before use."""


class ModelPlan(Frozen):
    """One model of the campaign."""

    id: str
    """The id as the suite writes it, e.g. ``HuggingFaceTB/SmolLM2-135M-Instruct``."""
    label: str
    """Short name for people, e.g. ``SmolLM2-135M``."""
    name: str
    """Directory name, see `rundir.model_name`."""
    source: ModelSource
    weights_gb: float
    """Weights on disk, GB (10^9 bytes)."""
    devices: int = Field(ge=0)
    """Accelerators its scoring steps hold; 0 runs on the CPU."""
    lane: str
    """Lane id, see `plan.lanes`."""
    batch: int = Field(ge=1)
    """Windows per forward pass."""
    scoring_gb: float = Field(default=0.0, ge=0)
    """Memory of a scoring step on all its devices together, GB."""
    batch_edits: bool = False
    """Whether all edits are made in one pass over the baseline."""


class StepPlan(Frozen):
    """One step: what `evpack step RUN_DIR STEP_ID` does."""

    id: str
    type: StepType
    model: str | None = None
    """Model directory name, None for campaign-level steps."""
    scenario: str | None = None
    """Scenario id of create and evaluate steps."""
    lane: str | None = None
    needs: tuple[str, ...] = ()
    """Ids of steps whose markers must exist."""
    runs: tuple[int, ...] = ()
    """Run numbers (1-based) of calibrate and evaluate steps."""
    edit: ResolvedEdit | None = None
    """Concrete parameters of a create step that edits; None for error injections."""
    timeout_s: int | None = None
    """Execution limit in seconds, None for no limit."""
    variant_gb: float = 0.0
    """Largest space that the variant of a create step may take, GB."""


class CampaignPlan(Frozen):
    """state/plan.json."""

    schema_: str = Field(default=PLAN_SCHEMA, alias="schema")
    suite: str
    created_at: str
    evpack_version: str
    settings_digest: str
    """`Settings.digest` of the frozen settings."""
    policy_overrides: dict[str, Any] = {}
    """Limits from configuration files, as `catalog.policy.resolve_policy` takes them."""
    variant_budget_gb: float | None = None
    """Space that variants may take at one time, GB; None when there is room for all."""
    models: tuple[ModelPlan, ...]
    """In priority order (small first unless the order setting says otherwise)."""
    scenarios: tuple[Scenario, ...]
    steps: tuple[StepPlan, ...]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    _digest: str | None = PrivateAttr(None)
    _frozen: CampaignPlan | None = PrivateAttr(None)
    _changes: tuple[LaneChange, ...] = PrivateAttr(())

    @property
    def lane_changes(self) -> tuple[LaneChange, ...]:
        """The changes of lane that are in this plan, oldest first."""
        return self._changes

    def as_planned(self) -> CampaignPlan:
        """The plan as it was frozen, without changes of lane."""
        return self._frozen or self

    def moved(self, changes: Iterable[LaneChange]) -> CampaignPlan:
        """The plan with further changes of lane. It keeps its digest: where a step runs is no part of what it makes.

        Raises:
            EvidenceError: when a change is not from the model's lane to the next larger one, or not for a step of it.
        """
        plan = self
        for change in changes:
            plan = plan._moved(change)
        return plan

    def _moved(self, change: LaneChange) -> CampaignPlan:
        found = [model for model in self.models if (model.name, model.lane) == (change.model, change.from_lane)]
        larger = next_lane(change.from_lane, DEVICE_COUNTS[-1]) if found else None
        failed = [step for step in self.steps if (step.id, step.model) == (change.step, change.model)]
        if larger is None or larger.id != change.to_lane or not failed:
            raise EvidenceError(f"no such change of lane can follow from the plan: {change.text()}")
        into = {"lane": larger.id, "devices": larger.devices}
        plan = self.model_copy(
            update={
                "models": tuple(m.model_copy(update=into) if m.name == change.model else m for m in self.models),
                "steps": tuple(
                    s.model_copy(update={"lane": larger.id}) if s.model == change.model else s for s in self.steps
                ),
            }
        )
        plan._frozen, plan._changes = self.as_planned(), (*self._changes, change)
        return plan

    def edits(self, model: str) -> dict[str, ResolvedEdit]:
        """The edits of a model by scenario id; faults have none."""
        creates = self.steps_of(StepType.CREATE, model=model)
        return {step.scenario: step.edit for step in creates if step.scenario is not None and step.edit is not None}

    def clean_edits(self, model: str) -> dict[str, ResolvedEdit]:
        """The edits of a model that the plan holds harmless, by scenario id."""
        clean = {scenario.id for scenario in self.scenarios if scenario.category is Category.CLEAN}
        return {scenario: edit for scenario, edit in self.edits(model).items() if scenario in clean}

    def model(self, name: str) -> ModelPlan:
        """The model with this directory name.

        Raises:
            BadInput: when the plan has none.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise BadInput(f"the plan has no model {name!r}", "known: " + ", ".join(m.name for m in self.models))

    def scenario(self, scenario_id: str) -> Scenario:
        """The scenario with this id.

        Raises:
            BadInput: when the plan has none.
        """
        for scenario in self.scenarios:
            if scenario.id == scenario_id:
                return scenario
        raise BadInput(f"the plan has no scenario {scenario_id!r}", "known: " + ", ".join(s.id for s in self.scenarios))

    def step(self, step_id: str) -> StepPlan:
        """The step with this id.

        Raises:
            BadInput: when the plan has none.
        """
        for step in self.steps:
            if step.id == step_id:
                return step
        raise BadInput(f"the plan has no step {step_id!r}", "step ids stand in state/plan.json")

    def steps_of(self, type_: StepType, *, model: str | None = None, lane: str | None = None) -> tuple[StepPlan, ...]:
        """Steps of one type in plan order, optionally of one model or lane."""
        return tuple(
            step
            for step in self.steps
            if step.type is type_ and model in (None, step.model) and lane in (None, step.lane)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, directories of this machine left out (`files.portable`).

        A plan that was read has the digest of what was read: a field that a later version adds does not change it.
        """
        if self._frozen is not None:
            return self._frozen.digest()
        return self._digest or digest_json(portable(self.to_json()))

    @classmethod
    def parse(cls, data: bytes, name: str = "state/plan.json") -> CampaignPlan:
        """Read a plan.

        Raises:
            EvidenceError: naming the document, the place and the fault.
        """
        value = parse_json(data, name)
        try:
            plan = cls.model_validate(value)
        except ValidationError as error:
            raise EvidenceError(f"{name}: {first_fault(error)}") from error
        plan._digest = digest_json(portable(value))
        return plan


def load_plan(run: RunDir) -> CampaignPlan:
    """Read state/plan.json of a run directory with the changes of lane since (`lane_changes`).

    A pack holds them too, but nobody may work in a sealed directory.

    Raises:
        BadInput: when the directory was never planned, or is a sealed pack.
        EvidenceError: when plan or changes are malformed.
    """
    if all((run.root / name).is_file() for name in _SEAL):
        raise BadInput(f"{run.root} is a sealed pack", "give its run directory")
    if not run.plan.is_file():
        raise BadInput(f"{run.root} holds no plan (state/plan.json)", "give a run directory of a planned campaign")
    plan = CampaignPlan.parse(run.plan.read_bytes(), str(run.plan))
    if not run.lane_changes.is_file():
        return plan
    return with_lane_changes(plan, run.lane_changes.read_bytes(), str(run.lane_changes))


def with_lane_changes(plan: CampaignPlan, data: bytes, name: str = "state/lane_changes.json") -> CampaignPlan:
    """A plan that was read, with the changes of lane of the document beside it.

    Raises:
        EvidenceError: when it cannot be read, is of another plan, or holds a change that cannot be.
    """
    document = LaneChanges.parse(data, name)
    if document.plan_digest != plan.digest():
        raise EvidenceError(f"{name}: of another plan")
    try:
        return plan.moved(document.changes)
    except EvidenceError as error:
        raise EvidenceError(f"{name}: {error.what}") from error


def step_id(type_: StepType, model: str | None = None, scenario: str | None = None) -> str:
    """The id of a step: ``<model>.<scenario>.<type>`` with the absent parts left out."""
    return ".".join(part for part in (model, scenario, type_.value) if part)

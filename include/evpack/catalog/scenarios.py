"""The scenario manifest: what is done to each model and what must come of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCENARIO_SCHEMAS = ("evidence_pack_scenarios_v1", "proof_pack_scenarios_v1")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Category(StrEnum):
    """Where a scenario belongs."""

    CLEAN = "clean"
    STRESS = "stress"
    ERROR_INJECTION = "error_injection"


class Strictness(StrEnum):
    """What must come of a scenario."""

    MUST_PASS = "must_pass"
    MUST_FAIL = "must_fail"
    MUST_DETECT = "must_detect"
    INFORMATIONAL = "informational"


class EditGeneration(_Part):
    """A variant made by an edit."""

    kind: Literal["edit"]
    edit_spec: str
    version: Literal["clean", "stress"]


class ErrorGeneration(_Part):
    """A variant made by an injected error."""

    kind: Literal["error"]
    error_type: str


class FlagDetector(_Part):
    """Hits when `validation.<flag>` is present and equals `expected`."""

    type: Literal["validation_flag"]
    flag: str
    expected: bool


class MetricDetector(_Part):
    """Hits when `primary_metric.<field>` is present and equals `expected`."""

    type: Literal["primary_metric"]
    field: str
    expected: bool


class InvariantsDetector(_Part):
    """Hits when `invariants.status` (lower case) is one of `allowed`."""

    type: Literal["invariants_status"]
    allowed: tuple[str, ...]


class RemediationDetector(_Part):
    """Hits when `<guard>.<field>` is at least `min`."""

    type: Literal["guard_remediation"]
    guard: str
    field: str
    min: float = 1


class ProbeDetector(_Part):
    """Hits when the sidecar `file` beside the report has `field` equal to `expected`."""

    type: Literal["probe"]
    file: str
    field: str = "triggered"
    expected: bool = True


Detector = Annotated[
    FlagDetector | MetricDetector | InvariantsDetector | RemediationDetector | ProbeDetector,
    Field(discriminator="type"),
]


class Requirements(_Part):
    """What the verdict asks of a scenario beyond its strictness."""

    catastrophic_required: bool = False
    detectors_any_of: tuple[Detector, ...] = ()


class Scenario(_Part):
    """One line of the manifest."""

    id: str
    category: Category
    failure_class: str
    strictness: Strictness
    generation: Annotated[EditGeneration | ErrorGeneration, Field(discriminator="kind")]
    requirements: Requirements = Requirements()
    intent: str = ""
    primary_guard: str = ""

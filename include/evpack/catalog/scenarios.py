"""The scenario manifest: what is done to each model and what must come of it."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evpack.catalog import supported
from evpack.errors import BadInput
from evpack.rundir import checked_id


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


RESERVED_IDS = frozenset({"baseline", "calibration", "errors"})
"""Directories beside those of scenarios, which no scenario may be named after."""

_GENERATION = {Category.CLEAN: "clean", Category.STRESS: "stress"}
_NEEDS_DETECTORS = (Strictness.MUST_DETECT, Strictness.MUST_FAIL)


class Manifest(_Part):
    """A scenario manifest file (spec: suites and scenarios, section 2)."""

    schema_: Literal["evidence_pack_scenarios_v1", "proof_pack_scenarios_v1"] = Field(alias="schema")
    schema_version: Literal[1]
    meta: dict[str, Any] = Field(default={}, alias="_meta")
    scenarios: tuple[Scenario, ...] = Field(min_length=1)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        seen: dict[str, str] = {}
        for scenario in self.scenarios:
            other = seen.get(scenario.id.casefold())
            if other == scenario.id:
                raise ValueError(f"scenario {scenario.id!r} stands twice")
            if other is not None:
                raise ValueError(f"scenarios {other!r} and {scenario.id!r} differ only in case; rename one")
            seen[scenario.id.casefold()] = scenario.id
            _check(scenario)
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)


def _check(scenario: Scenario) -> None:
    try:
        checked_id(scenario.id, "scenario")
    except BadInput as error:
        raise ValueError(error.what) from error
    if scenario.id in RESERVED_IDS:
        raise ValueError(f"scenario id {scenario.id!r} is reserved")
    made = scenario.generation.version if isinstance(scenario.generation, EditGeneration) else None
    if made != _GENERATION.get(scenario.category):
        raise ValueError(f"scenario {scenario.id!r}: generation does not fit category {scenario.category.value!r}")
    if scenario.strictness in _NEEDS_DETECTORS and not scenario.requirements.detectors_any_of:
        raise ValueError(f"scenario {scenario.id!r}: {scenario.strictness.value} needs detectors_any_of")
    for detector in scenario.requirements.detectors_any_of:
        for name, value, known in _named(detector):
            if value not in known:
                raise ValueError(
                    f"scenario {scenario.id!r}: a {detector.type} detector with {name} {value!r} can never hit; "
                    f"known: {', '.join(sorted(known))}"
                )


def _named(detector: Detector) -> list[tuple[str, str, Collection[str]]]:
    """What a detector names in a report: field, value, what there can be."""
    match detector:
        case FlagDetector(flag=flag):
            return [("flag", flag, supported.VALIDATION_FLAGS)]
        case MetricDetector(field=field):
            return [("field", field, supported.METRIC_FLAGS)]
        case InvariantsDetector(allowed=allowed):
            return [("status", status, supported.GUARD_STATUSES) for status in allowed]
        case RemediationDetector(guard=guard):
            return [("guard", guard, supported.SUPPORTED_GUARDS)]
        case ProbeDetector(file=file):
            return [("file", file, supported.PROBES)]

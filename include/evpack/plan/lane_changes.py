"""Changes of lane after planning: models that go on with more devices because theirs had too little memory.

The plan stays as it was frozen, for every report names its digest; state/lane_changes.json says which models left their
lane since. Whoever reads a plan from a run directory or a pack gets it with the changes (`CampaignPlan.moved`).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evpack.errors import EvidenceError
from evpack.files import first_fault, parse_json

LANE_CHANGES_SCHEMA = "evpack_lane_changes_v1"


class LaneChange(BaseModel):
    """One model, from one lane to the next."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Model directory name."""
    from_lane: str
    to_lane: str
    step: str
    """Id of the step that ran out of memory."""
    batch: int = Field(ge=1)
    """Windows per forward pass with which it still did."""
    changed_at: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")
    """UTC."""
    dag_run: str | None = None
    """The DAG run that resumed the campaign; None where it was resumed by hand."""

    def text(self) -> str:
        """One line for people."""
        asked = f"by DAG run {self.dag_run}" if self.dag_run else "by hand"
        return (
            f"{self.model} moved from lane {self.from_lane} to {self.to_lane}, because {self.step} ran out of memory "
            f"with a batch of {self.batch}; resumed {self.changed_at} {asked}"
        )


class LaneChanges(BaseModel):
    """state/lane_changes.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: str = Field(default=LANE_CHANGES_SCHEMA, alias="schema", pattern=f"^{LANE_CHANGES_SCHEMA}$")
    plan_digest: str
    """`CampaignPlan.digest` of the plan they belong to."""
    changes: tuple[LaneChange, ...]
    """Oldest first."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def parse(cls, data: bytes, name: str) -> LaneChanges:
        """Read the changes.

        Raises:
            EvidenceError: naming the document, the place and the fault.
        """
        try:
            return cls.model_validate(parse_json(data, name))
        except ValidationError as error:
            raise EvidenceError(f"{name}: {first_fault(error)}") from error

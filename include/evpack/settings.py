"""Everything an operator can set, in one frozen model.

`settings_resolve.resolve` makes it once, when a campaign is planned. It is frozen into state/settings.json; no
later step looks at PACK_* or INVARLOCK_* variables again. A field is named after its variable: lower case, without the
PACK_ or INVARLOCK_ prefix. docs/tuning.md is generated from the fields' metadata (`evpack.settings_docs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, ValidationError

from evpack.errors import EvidenceError
from evpack.files import digest_json, parse_json, portable
from evpack.settings_campaign import CampaignSettings
from evpack.settings_deployment import MOST_RETRIES, DeploymentSettings
from evpack.settings_types import Var

__all__ = ["MOST_RETRIES", "Settings", "variables"]


class Settings(DeploymentSettings, CampaignSettings):
    """The settings of one campaign. Defaults are the reference's; a suite may bring its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def timeout_for(self, task_type: str) -> int | None:
        """Execution limit in seconds of a task type (`StepType.reference_name`), None for no limit."""
        return self.task_timeouts.get(task_type.upper(), self.task_timeout_default)

    @property
    def reuses_presets(self) -> bool:
        """Whether presets of an earlier campaign take the place of calibration runs."""
        return self.calibration_preset_file is not None or self.calibration_preset_dir is not None

    @property
    def calibration_runs(self) -> int:
        """Calibration runs per model: DRIFT_CALIBRATION_RUNS, none where presets are reused."""
        return 0 if self.reuses_presets else self.drift_calibration_runs

    @property
    def scheduled_runs(self) -> int:
        """Runs that get windows; evaluation run k pairs with baseline run k, so the largest number counts."""
        return max(self.calibration_runs, self.clean_edit_runs, self.stress_edit_runs, 1)

    @property
    def advance(self) -> int:
        """Tokens from one window's beginning to the next: INVARLOCK_STRIDE, at most seq_len so that no text is lost."""
        return min(self.stride, self.seq_len)

    @property
    def model_slots(self) -> tuple[str | None, ...]:
        """MODEL_1 to MODEL_8: None keeps the suite's model, the empty string disables the slot."""
        return tuple(getattr(self, f"model_{slot}") for slot in range(1, 9))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value. Holds no secret: a key is only ever named by its path."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, directories of this machine left out (`files.portable`)."""
        return digest_json(portable(self.to_json()))

    @classmethod
    def parse(cls, data: bytes, name: str = "state/settings.json") -> Settings:
        """The settings frozen earlier by `to_json`.

        Raises:
            EvidenceError: when the document is not what `plan` wrote.
        """
        try:
            return cls.model_validate(parse_json(data, name))
        except ValidationError as error:
            raise EvidenceError(f"{name}: {error.error_count()} fields are not valid settings") from error


def variables() -> Iterator[tuple[str, Var, object]]:
    """Every setting as (field name, metadata, default), in the order of docs/tuning.md."""
    for name, info in Settings.model_fields.items():
        var = next(item for item in info.metadata if isinstance(item, Var))
        yield name, var, info.default

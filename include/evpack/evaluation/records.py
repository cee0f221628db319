"""records.json: the raw numbers from which metric, interval and gates must follow."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from evpack.catalog.floors import Arm
from evpack.errors import EvidenceError
from evpack.files import first_fault, parse_json

RECORDS_SCHEMA: Final = "evpack_window_records_v1"
MAX_COUNT = 2**31 - 1
"""Largest window id and token count: what an int32 holds."""
MAX_NLL_SUM = 1e45
"""Above any sum of float32 losses over a window (3.4e38 nats per token), below what overflows when squared."""

ARMS: tuple[Arm, ...] = ("preview", "final")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class WindowLoss(_Strict):
    """The loss of one window."""

    id: int = Field(ge=0, le=MAX_COUNT)
    """Row of the window in tokens.safetensors."""
    arm: Arm
    tokens_sha256: Sha256
    predicted_tokens: int = Field(ge=1, le=MAX_COUNT)
    """Tokens the loss is summed over: one fewer than the window holds."""
    nll_sum: float | None = Field(ge=0, le=MAX_NLL_SUM)
    """Sum of negative log-likelihoods in nats; null when it is not finite."""
    reason: str | None
    """Why `nll_sum` is null."""
    correct: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """Tokens of which the most likely prediction was right; where none were counted the key is not there."""

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> WindowLoss:
        if (self.nll_sum is None) != bool(self.reason):
            raise ValueError("nll_sum is null exactly when a reason is given")
        if self.correct is not None and (self.nll_sum is None or self.correct > self.predicted_tokens):
            raise ValueError("correct counts some of the predicted tokens, where the loss is finite")
        return self

    @model_serializer(mode="wrap")
    def _without_what_was_not_counted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = handler(self)
        if self.correct is None:
            del value["correct"]
        return value


class Compute(_Strict):
    """How the losses were computed; sides pair soundly only when all four agree."""

    device: str
    dtype: str
    attention: str
    batch: int = Field(ge=1)


class WindowRecords(_Strict):
    """Losses of one checkpoint on the windows of one run, in schedule order."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["evpack_window_records_v1"] = Field(default=RECORDS_SCHEMA, alias="schema")
    model: str
    side: Literal["subject", "baseline"]
    scenario: str | None
    run: int = Field(ge=0)
    seed: int
    windows_digest: str = Field(min_length=1)
    checkpoint_digest: str = Field(min_length=1)
    compute: Compute
    versions: dict[str, str]
    windows: tuple[WindowLoss, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _windows_stand_once(self) -> WindowRecords:
        seen = set()
        for window in self.windows:
            key = (window.arm, window.id)
            if key in seen:
                raise ValueError(f"window {window.arm}:{window.id} stands twice")
            seen.add(key)
        return self

    @classmethod
    def parse(cls, data: bytes, name: str) -> WindowRecords:
        """Read records from bytes.

        Args:
            data: the bytes that were hashed.
            name: what to call the document in an error.

        Raises:
            EvidenceError: naming the document, the place and the fault.
        """
        value = parse_json(data, name)
        if isinstance(value, dict):
            value.setdefault("schema", None)  # the default is for those who make records, not for files
            if isinstance(value.get("windows"), list):
                value["windows"] = tuple(value["windows"])
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise EvidenceError(f"{name}: {first_fault(error)}") from error

    def arm(self, arm: Arm) -> tuple[WindowLoss, ...]:
        """The windows of one arm, in schedule order."""
        return tuple(window for window in self.windows if window.arm == arm)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)

"""What the fields of the settings model are made of: metadata and types of values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from evpack.files import expanded


@dataclass(frozen=True)
class Var:
    """What is known about a setting besides its type and default."""

    group: str
    """Section of docs/tuning.md."""
    env: tuple[str, ...] | str
    """Environment variables that set it; the first one that is not empty wins."""
    text: str
    acts: str = ""
    """Where it acts; empty when nothing reads it."""
    airflow: str = ""
    """The mechanism that took the variable's place, when it was about queues, workers or locks."""
    secret: bool = False
    """Points at a secret: taken from the environment only, its value never repeated in a message."""
    empty_counts: bool = False
    """An empty string is a value of its own (it disables something), not the same as unset."""

    @property
    def names(self) -> tuple[str, ...]:
        """The environment variables as a tuple."""
        return (self.env,) if isinstance(self.env, str) else self.env


PLAN = "plan"
ENGINE = "calibrate, evaluate"
"""Where settings act; the words of docs/tuning.md."""

TASK_TYPES = (
    *("SETUP_BASELINE", "CALIBRATION_RUN", "GENERATE_PRESET", "CREATE_EDIT", "CREATE_EDITS_BATCH", "EVALUATE_EDIT"),
    *("CREATE_ERROR", "EVALUATE_ERROR", "COMPILE_VERDICT", "BUILD_PACK", "VERIFY_PACK"),
)
"""What may follow TASK_TIMEOUT_, in upper case; either case is understood."""

_UNSET = frozenset({"", "auto", "none"})


def no_bool(value: object) -> object:
    """Refuse true and false where a number is meant; pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def auto(value: object) -> object:
    """None for ``auto``, ``none`` and the empty string."""
    return None if isinstance(value, str) and value.strip().lower() in _UNSET else value


def _seconds(value: object) -> object:
    """Seconds; empty, 0 and none mean no limit."""
    value = auto(no_bool(value))
    return None if value in (0, "0") else value


def timeouts(value: object) -> object:
    """Limits by task type, names in upper case; a mapping or its JSON text."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("a mapping of task type to seconds is needed")
    unknown = [key for key in value if str(key).upper() not in TASK_TYPES]
    if unknown:
        raise ValueError(f"unknown task type {unknown[0]!r}; known: {', '.join(TASK_TYPES)}")
    return {str(key).upper(): _seconds(seconds) for key, seconds in value.items()}


def _items(value: object) -> object:
    """A list, also when written with commas."""
    if isinstance(value, str):
        return tuple(item for item in (part.strip() for part in value.split(",")) if item)
    return value


def _absolute(value: str) -> str:
    return str(expanded(value).absolute())


def _dataset_name(value: str) -> str:
    return _absolute(value) if value.startswith(("/", "./", "../", "~")) else value


LAYOUT_ALIASES = {"": "v1", "flat": "v1", "legacy": "v1", "enhanced": "v2"}
"""Other names of a pack's layouts, the reference's."""


def layout_name(value: object) -> object:
    """The layout that a name or an alias of it means."""
    return LAYOUT_ALIASES.get(value, value) if isinstance(value, str) else value


def key_path(value: object) -> object:
    """Refuse key material where the path of a key is meant."""
    if isinstance(value, str) and ("-----BEGIN" in value or "\n" in value.strip()):
        raise ValueError("the value is key material; give the path of a PEM file instead")
    return value


Whole = Annotated[int, BeforeValidator(no_bool)]
Count = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Whole, Field(ge=1)]
Gigabytes = Annotated[float, BeforeValidator(no_bool), Field(ge=0)]
"""10^9 bytes."""
LONGEST_S = 10**9
"""Seconds; neither the system's alarm clock nor a calendar takes much more."""
Seconds = Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=LONGEST_S)]
Limit = Annotated[Annotated[int, Field(ge=1, le=LONGEST_S)] | None, BeforeValidator(_seconds)]
"""Seconds, None for no limit."""
FilePath = Annotated[str, AfterValidator(_absolute)]
"""Absolute; a relative one is taken from the directory where the campaign is planned."""
DatasetName = Annotated[str, AfterValidator(_dataset_name)]
"""A hub id, or a directory, absolute like `FilePath`."""
Items = Annotated[tuple[str, ...], BeforeValidator(_items)]
Paths = Annotated[tuple[FilePath, ...], BeforeValidator(_items)]

"""From params, asset event, environment and suite data to one frozen `Settings`: once, in `plan`.

The one place where an environment is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from evpack.errors import BadInput
from evpack.settings import Settings, variables
from evpack.settings_provider import PROVIDER_FIELDS, provider_settings

_TIMEOUT_PREFIX = "TASK_TIMEOUT_"
_OURS = ("PACK_", "INVARLOCK_")
"""What names of variables begin with that nobody but a campaign reads."""


def resolve(
    params: Mapping[str, Any],
    event: Mapping[str, Any],
    environ: Mapping[str, str],
    suite_settings: Mapping[str, Any],
) -> Settings:
    """One frozen model from all sources: params > asset event > environment > suite data > defaults.

    Args:
        params: a run's params or conf, by field or variable name; None is not set, nor is "" where it means nothing.
        event: payload of the asset event; keys that are no settings are ignored (Airflow adds its own).
        environ: environment of the planning process.
        suite_settings: the suite's own block.

    Raises:
        BadInput: naming every wrong variable, its value and source.
    """
    given: dict[str, tuple[object, str, str]] = {}
    for source, values in (
        ("suite data", _named(suite_settings, "suite data")),
        ("environment", _from_environ(environ)),
        ("asset event", _named(event, None)),
        ("params", _named(params, "params")),
    ):
        for name, (value, spelled) in values.items():
            if name == "task_timeouts" and name in given and isinstance(value, Mapping):
                value = {**cast("dict[str, object]", given[name][0]), **value}
            given[name] = (value, spelled, source)
    given = _with_provider(given)
    try:
        return Settings.model_validate({name: value for name, (value, *_) in given.items()})
    except ValidationError as error:
        raise BadInput(_faults(error, given), "docs/tuning.md lists every setting with type and default") from None


def peek_suite(params: Mapping[str, Any], event: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The suite's name, which decides the suite data that `resolve` needs."""
    return resolve(
        {"suite": _pick(params)}, {"suite": _pick(event)}, {"PACK_SUITE": environ.get("PACK_SUITE", "")}, {}
    ).suite


def given_fields(params: Mapping[str, Any]) -> frozenset[str]:
    """Names of the settings that params set explicitly.

    Raises:
        BadInput: when params hold something that is no setting.
    """
    return frozenset(_named(params, "params"))


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that look like settings and are none, each with the nearest known name."""
    known = [name for var in _VARS.values() for name in var.names]
    unknown = sorted(name for name in environ if name.startswith(_OURS) and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), None) for name in unknown}


def idle_variables(params: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Settings that are given and that nothing reads, as they are spelled, each with what is known about it."""
    given = {**_from_environ(environ), **_named(params, None)}
    idle = {spelled: _VARS[name] for name, (_, spelled) in given.items() if not _VARS[name].acts}
    return {spelled: f"Airflow: {var.airflow}" if var.airflow else var.text for spelled, var in idle.items()}


def _with_provider(given: dict[str, tuple[object, str, str]]) -> dict[str, tuple[object, str, str]]:
    """The values with a raw provider mapping in place of all settings of providers."""
    raw = [name for name in ("dataset_provider_yaml", "dataset_provider_json") if name in given]
    if not raw:
        return given
    text, spelled, source = given[raw[0]]
    if len(raw) > 1:
        raise BadInput(f"{spelled} and {given[raw[1]][1]} both name a provider", "unset one of the two")
    fields = provider_settings(str(text), spelled, yaml=raw[0] == "dataset_provider_yaml")
    kept = {name: value for name, value in given.items() if name not in PROVIDER_FIELDS}
    return kept | {name: (value, f"{spelled}: {name}", source) for name, value in fields.items()}


def _pick(values: Mapping[str, Any]) -> object:
    return values.get("suite") or values.get("PACK_SUITE")


_VARS = {name: var for name, var, _ in variables()}
_FIELD_OF = {spelled: name for name, var in _VARS.items() for spelled in (name, *var.names)}


def _is_set(name: str, value: object) -> bool:
    return value is not None and (value != "" or _VARS[name].empty_counts)


def _named(values: Mapping[str, Any], strict: str | None) -> dict[str, tuple[object, str]]:
    """Values by field name, each with the name as spelled; `strict` names a source that may hold nothing unknown."""
    found: dict[str, tuple[object, str]] = {}
    for spelled, value in values.items():
        name = _FIELD_OF.get(spelled)
        if name is None:
            if strict and value is not None:
                near = difflib.get_close_matches(spelled, _FIELD_OF, 1)
                raise BadInput(
                    f"{spelled!r} in {strict} is not a setting",
                    f"did you mean {near[0]!r}?" if near else "docs/tuning.md lists every setting",
                )
            continue
        if not _is_set(name, value):
            continue
        if _VARS[name].secret:
            raise BadInput(f"{spelled} cannot be set by {strict or 'an asset event'}", f"set {_VARS[name].names[0]}")
        found[name] = (value, spelled)
    return found


def _from_environ(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    found: dict[str, tuple[object, str]] = {}
    for name, var in _VARS.items():
        for spelled in var.names:
            if spelled in environ and _is_set(name, environ[spelled].strip()):
                found[name] = (environ[spelled].strip(), spelled)
                break
    limits = {
        key[len(_TIMEOUT_PREFIX) :]: value
        for key, value in environ.items()
        if re.match(_TIMEOUT_PREFIX, key, re.IGNORECASE) and key.upper() != f"{_TIMEOUT_PREFIX}DEFAULT"
    }
    if limits:
        found["task_timeouts"] = (limits, _TIMEOUT_PREFIX + "|".join(limits))
    return found


def _faults(error: ValidationError, given: Mapping[str, tuple[object, str, str]]) -> str:
    lines = []
    for fault in error.errors():
        name = str(fault["loc"][0])
        value, spelled, source = given.get(name, (None, name, "default"))
        shown = "" if _VARS[name].secret else f"={value!r}"
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{spelled}{shown} ({source}): {message[:1].lower()}{message[1:]}")
    return "; ".join(dict.fromkeys(lines))

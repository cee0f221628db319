"""The trigger form: the settings a person may give to a run, as Airflow params with a JSON schema.

Made from `settings.Settings` and the catalog, so that a setting has one description. Every default is null,
which means not set: then the environment, the suite and the defaults decide.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

from evpack.catalog.suites import suites
from evpack.settings import Settings, variables
from evpack.settings_campaign import CampaignSettings
from evpack.settings_types import Var

_KINDS = {"string", "integer", "number", "boolean", "array", "object"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Pydantic leaves bounds under its own names where a validator of ours stands before the type."""
_KEPT = ("items", *_BOUNDS.values())


def campaign_params() -> dict[str, Param]:
    """The form: one param per setting that a step reads, in the order of docs/tuning.md, suite first."""
    schema = Settings.model_json_schema()["properties"]
    return {
        name: _param(var, {**schema[name], **_choices(name)})
        for name, var, _default in variables()
        if name in CampaignSettings.model_fields and var.acts and not var.secret
    }


def _choices(name: str) -> dict[str, Any]:
    return {"enum": list(suites())} if name == "suite" else {}


def _param(var: Var, schema: dict[str, Any]) -> Param:
    """A nullable param of the setting's schema; alternatives other than null are taken from the first of them."""
    for alternative in schema.get("anyOf", ()):
        if alternative.get("type") in _KINDS:
            schema = {**alternative, **{key: schema[key] for key in ("enum",) if key in schema}}
            break
    schema = {_BOUNDS.get(key, key): value for key, value in schema.items()}
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if "enum" in schema:
        kept["enum"] = [None, *schema["enum"]]
    return Param(
        None, type=["null", schema["type"]], section=var.group, description_md=f"{var.text} (`{var.names[0]}`)", **kept
    )

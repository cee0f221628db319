"""Tuned parameters of clean edits, per model (spec: suites and scenarios, section 3); data/tuned_edit_params.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evpack.catalog.loader import parse_document, read_document, shipped
from evpack.errors import BadInput

SCHEMA = "tuned_edit_params_v1"
_SHIPPED = "tuned_edit_params.json"
_SCHEMA_FILE = "tuned_edit_params.schema.json"


@dataclass(frozen=True)
class TunedParams:
    """A tuned parameters document."""

    document: Mapping[str, Any]

    def entry(self, edit_type: str, *keys: str) -> Mapping[str, Any] | None:
        """The entry of an edit type: by the first key known under `models`, else top level, else `defaults`.

        Args:
            keys: the model's id and directory name.
        """
        models = self.document.get("models", {})
        places = [*(models.get(key, {}) for key in keys), self.document, self.document.get("defaults", {})]
        for place in places:
            found = place.get(edit_type)
            if found is not None:
                return dict(found)
        return None


def load_tuned(path: str | None) -> TunedParams:
    """The operator's file, or the shipped one when None.

    Its form is checked here (tuned_edit_params.schema.json); the numbers of an entry when it is resolved.

    Raises:
        BadInput: not there, not JSON, not of the schema.
    """
    mend = "set PACK_TUNED_EDIT_PARAMS_FILE to a file of schema " + SCHEMA
    if path is None:
        name, data = _SHIPPED, shipped(_SHIPPED)
    else:
        name, data = path, read_document(Path(path), "tuned parameters file", mend)
    document = parse_document(data, name)
    for fault in _validator().iter_errors(document):
        place = ".".join(map(str, fault.absolute_path)) or "document"
        raise BadInput(f"{name}: {place}: {fault.message[:200]}", mend)
    return TunedParams(document)


def empty_document() -> dict[str, Any]:
    """A document without entries."""
    return {"_meta": {"schema": SCHEMA, "notes": "Parameters of clean edits, per model."}, "models": {}}


def with_entries(
    document: Mapping[str, Any], model_id: str, entries: Mapping[str, Mapping[str, Any]], now: str
) -> dict[str, Any]:
    """The document with a model's entries put in place of those it has; everything else stays.

    Args:
        now: UTC time, ISO 8601.
    """
    models = document.get("models", {})
    return {
        **document,
        "_meta": {**document.get("_meta", {}), "schema": SCHEMA, "generated_at": now},
        "models": {**models, model_id: {**models.get(model_id, {}), **entries}},
    }


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(parse_document(shipped(_SCHEMA_FILE), _SCHEMA_FILE))

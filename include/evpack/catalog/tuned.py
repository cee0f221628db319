"""Tuned parameters of clean edits, per model (spec: suites and scenarios, section 3); data/tuned_edit_params.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.catalog.edit_spec import EDIT_TYPES
from evpack.catalog.loader import parse_document, read_document, shipped
from evpack.errors import BadInput

SCHEMA = "tuned_edit_params_v1"
_SHIPPED = "tuned_edit_params.json"


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

    Raises:
        BadInput: not there, not JSON, not of the schema.
    """
    mend = "set PACK_TUNED_EDIT_PARAMS_FILE to a file of schema " + SCHEMA
    if path is None:
        name, data = _SHIPPED, shipped(_SHIPPED)
    else:
        name, data = path, read_document(Path(path), "tuned parameters file", mend)
    document = parse_document(data, name)
    if not isinstance(document, dict):
        raise BadInput(f"{name}: not an object", mend)
    meta = document.get("_meta", {})
    stated = meta.get("schema", SCHEMA) if isinstance(meta, dict) else None
    if stated != SCHEMA:
        raise BadInput(f"{name}: schema {stated!r}", mend)
    places = {"models." + key: value for key, value in _object(document, "models", name).items()}
    for place, entries in {**places, "defaults": _object(document, "defaults", name), "top level": document}.items():
        if not isinstance(entries, dict):
            raise BadInput(f"{name}: {place} is not an object", mend)
        for edit_type in EDIT_TYPES:
            if not isinstance(entries.get(edit_type, {}), dict):
                raise BadInput(f"{name}: {place}.{edit_type} is not an object", mend)
    return TunedParams(document)


def _object(document: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise BadInput(f"{name}: {key} is not an object", f"see the shipped {_SHIPPED}")
    return value

"""JSON schemas of what a pack holds beside reports and verdict; unknown keys are allowed unless a schema says not."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from evpack.errors import EvidenceError
from evpack.files import MAX_JSON_BYTES, parse_json


def checked(data: bytes, name: str, schema: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Parse a document and hold it against a shipped schema.

    Args:
        data: the bytes that were hashed.
        name: what to call the document in an error.
        schema: name of the schema file without its suffix.

    Raises:
        EvidenceError: naming the document, the place and the fault.
    """
    value = parse_json(data, name, limit)
    error = next(iter(_validator(schema).iter_errors(value)), None)
    if error is not None:
        raise EvidenceError(f"{name}: {error.json_path}: {error.message[:300]}")
    return dict(value)


@cache
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    file = resources.files(__package__) / f"{schema}.json"
    return Draft202012Validator(parse_json(file.read_bytes(), file.name))

"""The reference's raw `dataset.provider` mapping as settings."""

from __future__ import annotations

from collections.abc import Mapping

from evpack.errors import BadInput, EvidenceError
from evpack.files import Json, parse_json
from evpack.yaml_files import parse_yaml

_FIELDS: Mapping[str, Mapping[str, str]] = {
    "wikitext2": {"cache_dir": "hf_cache_dir"},
    "hf_text": {
        "dataset_name": "hf_dataset_name",
        "config_name": "hf_config_name",
        "split": "hf_split",
        "text_field": "hf_text_field",
        "max_samples": "hf_max_samples",
        "cache_dir": "hf_cache_dir",
        "trust_remote_code": "hf_trust_remote_code",
    },
    "local_jsonl": {
        "file": "local_jsonl_file",
        "path": "local_jsonl_path",
        "data_files": "local_jsonl_data_files",
        "text_field": "local_jsonl_text_field",
        "max_samples": "local_jsonl_max_samples",
    },
    "text": {"path": "text_path"},
}
"""Per kind, the setting that each argument means."""

PROVIDER_FIELDS = frozenset({"dataset"}.union(*(fields.values() for fields in _FIELDS.values())))
"""Every setting that says where the text comes from; a mapping replaces them all."""


def provider_settings(text: str, spelled: str, *, yaml: bool) -> dict[str, Json]:
    """Settings by field name that a provider mapping means.

    Args:
        text: YAML or JSON; a mapping with `kind` and the kind's arguments.
        spelled: the variable that holds it, for errors.

    Raises:
        BadInput: not such a mapping, an unknown kind or argument.
    """
    try:
        mapping = parse_yaml(text, spelled) if yaml else parse_json(text.encode("utf-8"), spelled)
    except EvidenceError as error:
        raise BadInput(error.what, "give a JSON object") from error
    kind = mapping.get("kind") if isinstance(mapping, dict) else mapping
    if not isinstance(mapping, dict) or not isinstance(kind, str) or kind not in _FIELDS:
        raise BadInput(
            f"{spelled}: {kind!r} is no kind of provider", f"give a mapping with kind: {' | '.join(_FIELDS)}"
        )
    fields = _FIELDS[kind]
    if unknown := sorted(str(key) for key in mapping if key != "kind" and key not in fields):
        known = ", ".join(fields)
        raise BadInput(f"{spelled}: provider {kind} has no argument {unknown[0]!r}", f"known: {known}")
    given = {fields[key]: value for key, value in mapping.items() if key != "kind" and value is not None}
    return {"dataset": kind, **given}

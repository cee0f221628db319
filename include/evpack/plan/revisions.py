"""Pinned revisions of hub models: read from a file, or taken from the hub when the network may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evpack.catalog.loader import parse_document, read_document
from evpack.errors import BadInput, Transient
from evpack.files import write_json
from evpack.home import Home
from evpack.plan import hub
from evpack.settings import Settings

Pin = dict[str, Any]
"""``{revision, resolved_at, gated, private}``."""

_FORM = "write it as {models: {id: {revision, resolved_at, gated, private}}}"
_MEND = "run `evpack revisions pin`, plan with PACK_NET=1, or set PACK_MODEL_REVISIONS_FILE to a file that has them"


def settle_pins(model_ids: Sequence[str], settings: Settings, home: Home, now: str) -> dict[str, Pin]:
    """The pin of every hub model of a campaign.

    Without network they come from PACK_MODEL_REVISIONS_FILE, else from the deployment. With network, a file that the
    operator names still holds; what it does not name is the head of the repository now.

    Raises:
        BadInput: listing the models without a pin; a model that is gated, private, or cannot be looked up.
    """
    known = read_pins(settings, home) if settings.model_revisions_file or not settings.net else {}
    missing = [model_id for model_id in model_ids if not _has_revision(known.get(model_id))]
    if missing and not settings.net:
        raise BadInput(f"models without a pinned revision (a commit of 40 hex digits): {', '.join(missing)}", _MEND)
    found = {model_id: resolve_pin(model_id, now) for model_id in missing}
    return {model_id: found[model_id] if model_id in found else _checked(model_id, known) for model_id in model_ids}


def resolve_pin(model_id: str, now: str) -> Pin:
    """Pin a model to the head of its repository.

    Args:
        now: UTC time, recorded as `resolved_at`.

    Raises:
        BadInput: gated, private, unknown, or the hub cannot be reached: without pins nothing can be planned.
    """
    try:
        remote = hub.look_up(model_id)
    except Transient as error:
        raise BadInput(error.what, error.mend) from error
    pin = {"revision": remote.revision, "resolved_at": now, "gated": remote.gated, "private": remote.private}
    return _checked(model_id, {model_id: pin})


def read_pins(settings: Settings, home: Home) -> Mapping[str, Any]:
    """Entries by model id, from PACK_MODEL_REVISIONS_FILE or the deployment; empty when it has none.

    Raises:
        BadInput: named file missing, or not of the form ``{models: {id: {revision, ...}}}``.
    """
    if settings.model_revisions_file:
        return _models_in(Path(settings.model_revisions_file))
    return _models_in(home.model_revisions) if home.model_revisions.exists() else {}


def _models_in(path: Path) -> Mapping[str, Any]:
    document = parse_document(read_document(path, "model revisions file", _FORM), str(path))
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, dict):
        raise BadInput(f"{path}: holds no object `models`", _FORM)
    if strange := [model_id for model_id, entry in models.items() if not isinstance(entry, dict)]:
        raise BadInput(f"{path}: the entry of model {strange[0]!r} is {models[strange[0]]!r}, no object", _FORM)
    return models


def pins_document(pins: Mapping[str, Pin], suite: str, now: str) -> dict[str, Any]:
    """The content of model_revisions.json; models in the order of `pins`."""
    return {"generated_at": now, "suite": suite, "model_list": list(pins), "models": dict(pins)}


def store_pins(home: Home, pins: Mapping[str, Pin], suite: str, now: str) -> None:
    """Lay pins over those of the deployment.

    Raises:
        BadInput: when the home cannot be written or its file is not of the form.
    """
    home.create()
    merged = {**(_models_in(home.model_revisions) if home.model_revisions.exists() else {}), **pins}
    write_json(home.model_revisions, pins_document(merged, suite, now))


def _has_revision(entry: Mapping[str, Any] | None) -> bool:
    revision = entry.get("revision") if entry else None
    return isinstance(revision, str) and bool(hub.COMMIT.fullmatch(revision))


def _checked(model_id: str, pins: Mapping[str, Any]) -> Pin:
    """The pin in its four fields, when the model is open to everybody."""
    entry = pins[model_id]
    for flag in ("gated", "private"):
        if entry.get(flag):
            raise BadInput(f"model {model_id} is {flag}", "use an openly available model")
    return {"revision": entry["revision"], "resolved_at": entry.get("resolved_at"), "gated": False, "private": False}

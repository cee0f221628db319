"""The parameters a sweep tries, as data (ladders.json), settled for one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evpack.catalog.edit_spec import EditType, ResolvedEdit, parse_edit_spec, parse_scope, resolve_edit
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import placements
from evpack.errors import CheckpointError
from evpack.files import parse_json

_FILE = Path(__file__).with_name("ladders.json")
MIDDLE = "middle"


def ladder(edit_type: EditType, checkpoint: CheckpointLike) -> tuple[ResolvedEdit, ...]:
    """The rungs of an edit type for a model, from mild to strong; equal ones (ranks of a tiny model) stand once.

    Raises:
        CheckpointError: when the model has no weight that edits know.
    """
    rungs = parse_json(_FILE.read_bytes(), _FILE.name)["ladders"][edit_type]
    entries = [{"status": "selected", **_settled(rung, checkpoint)} for rung in rungs]
    edits = (resolve_edit(parse_edit_spec(f"{edit_type}:clean:{entry['scope']}"), entry) for entry in entries)
    return tuple(dict.fromkeys(edits))


def _settled(rung: dict[str, Any], checkpoint: CheckpointLike) -> dict[str, Any]:
    """A rung as a tuned entry: shares of the model's size turned into numbers."""
    entry = dict(rung)
    places = placements(checkpoint)
    layers = sorted({place.layer for place in places})
    if not layers:
        raise CheckpointError(
            "no tensor of this checkpoint is a projection of a transformer block", "its family may not be supported"
        )
    if entry.pop("layer", None) == MIDDLE:
        entry["scope"] += f"@layer={layers[len(layers) // 2]}"
    if fraction := entry.pop("rank_fraction", None):
        scope = parse_scope(entry["scope"])
        inside = [place for place in places if scope.kind in ("all", place.part) and scope.admits(place.layer)]
        sides = [min(checkpoint.info(place.name).shape[-2:]) for place in inside]
        entry["rank"] = max(1, round(fraction * min(sides, default=1)))
    return entry


def parameters_of(edit: ResolvedEdit) -> dict[str, Any]:
    """The parameters that an edit's tuned entry holds besides its scope."""
    values = edit.model_dump(include={"bits", "group_size", "format", "sparsity", "rank"}, exclude_none=True)
    return values | ({"scale": edit.scale} if edit.edit_type == "fp8_quant" else {})


def words(edit: ResolvedEdit) -> str:
    """An edit for people, e.g. ``5 bits in groups of 32 on ffn``."""
    match edit.edit_type:
        case "quant_rtn":
            what = f"{edit.bits} bits " + (f"in groups of {edit.group_size}" if edit.group_size else "per row")
        case "fp8_quant":
            what = f"{edit.format} with {'no scale' if edit.scale == 'none' else f'a scale per {edit.scale}'}"
        case "magnitude_prune":
            what = f"{edit.sparsity:.0%} sparsity" if edit.sparsity else ""
        case "lowrank_svd":
            what = f"rank {edit.rank}"
    return f"{what} on {edit.scope}"

"""Making the variant of a fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.writer import VariantWriter
from evpack.errors import BadInput, CheckpointError
from evpack.faults.collapse import extreme_quant, norm_collapse, rank_collapse
from evpack.faults.injection import Change, Figures, Injection, Victim
from evpack.faults.noise import rmt_norm_noise
from evpack.faults.non_finite import inf_injection, nan_injection
from evpack.faults.scaling import scale_explosion, spectral_moderate_scale, ve_mlp_scale_skew
from evpack.faults.structure import missing_tensors, shape_mismatch, weight_tying_break

if TYPE_CHECKING:
    from evpack.faults.injection import Tokens

_FAULTS: dict[str, Callable[[Victim], Injection]] = {
    fault.__name__: fault
    for fault in (
        *(nan_injection, inf_injection, extreme_quant, shape_mismatch, missing_tensors, scale_explosion),
        *(rank_collapse, norm_collapse, weight_tying_break),
        *(rmt_norm_noise, spectral_moderate_scale, ve_mlp_scale_skew),
    )
}

SUPPORTED: tuple[str, ...] = tuple(_FAULTS)
"""Error types that can be injected; a plan refuses the others before any compute."""

_RECORDED = 32
"""Tensors recorded one by one. A fault of all tensors records the first of them and the sums: its metadata stands
in every report."""


def injection_for(error_type: str, victim: Victim) -> Injection:
    """A fault at its canonical place (docs/faults.md).

    Raises:
        BadInput: for an unknown error type.
        CheckpointError: when the model has no place for it.
    """
    if error_type not in _FAULTS:
        raise BadInput(f"error type {error_type!r} cannot be injected", f"use one of {', '.join(SUPPORTED)}")
    return _FAULTS[error_type](victim)


def apply_fault(
    checkpoint: CheckpointLike, error_type: str, directory: Path, *, scenario: str, tokens: Tokens | None = None
) -> DeltaCheckpoint:
    """Make the variant of a fault at its canonical place; see `inject`.

    Args:
        checkpoint: the baseline.
        error_type: one of `SUPPORTED`.
        directory: existing and empty; gets delta.safetensors and variant.json.
        scenario: recorded in the variant.
        tokens: int32 [windows, length], of the evaluation's text; needed where a fault goes to the expert that most
            tokens are routed to.

    Raises:
        BadInput: for an unknown error type.
        CheckpointError: when the model has no place for the fault, or the damage does not show.
    """
    injection = injection_for(error_type, Victim(checkpoint, tokens))
    return inject(checkpoint, error_type, injection, directory, scenario=scenario)


def inject(
    checkpoint: CheckpointLike, error_type: str, injection: Injection, directory: Path, *, scenario: str
) -> DeltaCheckpoint:
    """Make the variant of a decided fault and see that it is damaged as meant.

    Holds one tensor and its damaged copy at a time.

    Args:
        checkpoint: the baseline.
        error_type: what to call the fault.
        directory: existing and empty; gets delta.safetensors and variant.json.
        scenario: recorded in the variant.

    Raises:
        CheckpointError: when the damage does not show.
    """
    added = {c.name: checkpoint.info(c.source) for c in injection.changes if c.source is not None}
    names = [change.name for change in injection.changes if change.source is None]
    before, after = Figures(), Figures()
    records: list[dict[str, Any]] = []
    with VariantWriter(directory, checkpoint, names, added) as writer:
        for change in injection.changes:
            one, other = _inject(checkpoint, error_type, change, writer)
            before, after = before.plus(one), after.plus(other)
            if len(records) < _RECORDED:
                records.append(_record(change, one, other))
        variant = writer.finish(  # reads every tensor back and compares it with what was put
            scenario=scenario,
            kind="error",
            declaration=None,
            removed=injection.removed,
            config_overrides=injection.config,
            metadata={
                "artifact_class": "fault_injection_fixture",
                "error_type": error_type,
                "injected": True,
                "seed": None,
                "target_param": injection.changes[0].name if injection.changes else None,
                "target_block": injection.changes[0].layer if injection.changes else None,
                "target_count": len(injection.changes),
                "targets": records,
                "before": before.to_json(),
                "after": after.to_json(),
                **injection.parameters,
            },
        )
    _check_structure(checkpoint, variant, error_type, injection)
    return variant


def _inject(
    checkpoint: CheckpointLike, error_type: str, change: Change, writer: VariantWriter
) -> tuple[Figures, Figures]:
    """Damage one tensor and store it; its figures before and after.

    Raises:
        CheckpointError: when the tensor comes out undamaged.
    """
    before = checkpoint.read(change.source or change.name)
    after = change.damage(before.clone())
    stored = writer.put(change.name, before if change.source is None else None, after)
    if not (stored and change.shows(before, after)):
        raise CheckpointError(
            f"{error_type} does not show in tensor {change.name!r}",
            "the tensor may be all zeros or of a type too narrow for the damage",
        )
    return Figures.of(before), Figures.of(after)


def _record(change: Change, before: Figures, after: Figures) -> dict[str, Any]:
    return {"name": change.name, "block": change.layer, "before": before.to_json(), "after": after.to_json()}


def _check_structure(
    checkpoint: CheckpointLike, variant: DeltaCheckpoint, error_type: str, injection: Injection
) -> None:
    """See in the reopened variant what is not the value of a tensor: names and configuration.

    Raises:
        CheckpointError: when one of them is not as meant, or as it was before.
    """
    was: Mapping[str, Any] = checkpoint.config()
    now = variant.config()
    names = set(variant.names())
    wrong = [f"config {key}" for key, to in injection.config.items() if now.get(key) != to or was.get(key) == to]
    wrong += [f"removed {name}" for name in injection.removed if name in names]
    wrong += [f"added {change.name}" for change in injection.changes if change.name not in names]
    if wrong:
        raise CheckpointError(f"{error_type} does not show after writing: {wrong[0]}", "create the variant again")

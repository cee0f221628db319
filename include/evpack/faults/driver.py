"""Making the variant of a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.writer import VariantWriter
from evpack.errors import BadInput, CheckpointError
from evpack.faults.injection import Injection, statistics
from evpack.faults.non_finite import nan_injection
from evpack.faults.scaling import scale_explosion

_FAULTS: dict[str, Callable[[CheckpointLike], Injection]] = {
    "nan_injection": nan_injection,
    "scale_explosion": scale_explosion,
}

SUPPORTED: tuple[str, ...] = tuple(_FAULTS)
"""Error types that can be injected; a plan refuses the others before any compute."""


def apply_fault(checkpoint: CheckpointLike, error_type: str, directory: Path, *, scenario: str) -> DeltaCheckpoint:
    """Make the variant of a fault and see, in what was written, that it is damaged as meant.

    Args:
        checkpoint: the baseline.
        error_type: one of `SUPPORTED`.
        directory: existing and empty; gets delta.safetensors and variant.json.
        scenario: recorded in the variant.

    Raises:
        BadInput: for an unknown error type.
        CheckpointError: when the model has no place for the fault, or the damage does not show.
    """
    if error_type not in _FAULTS:
        raise BadInput(f"error type {error_type!r} cannot be injected", f"use one of {', '.join(SUPPORTED)}")
    injection = _FAULTS[error_type](checkpoint)
    name = injection.target.name
    before = checkpoint.read(name)
    after = injection.damage(before.clone())
    metadata: dict[str, Any] = {
        "artifact_class": "fault_injection_fixture",
        "error_type": error_type,
        "injected": True,
        "target_param": name,
        "target_block": injection.target.layer,
        **injection.parameters,
        "before": statistics(before),
        "after": statistics(after),
    }
    with VariantWriter(directory, checkpoint, [name]) as writer:
        writer.put(name, before, after)
        variant = writer.finish(scenario=scenario, kind="error", declaration=None, metadata=metadata)
    if not injection.shows(before, variant.read(name)):
        raise CheckpointError(
            f"{error_type} does not show in tensor {name!r} after writing",
            "the tensor may be all zeros or of a type too narrow for the damage",
        )
    return variant

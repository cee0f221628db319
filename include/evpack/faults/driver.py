"""Making the variant of a fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.scope import block_of
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

    Holds one tensor and its damaged copy at a time. Of a fault of many tensors, those that it cannot change (zeros that
    become zeros) are left out and counted.

    Args:
        checkpoint: the baseline.
        error_type: what to call the fault.
        directory: existing and empty; gets delta.safetensors and variant.json.
        scenario: recorded in the variant.

    Raises:
        CheckpointError: when the damage does not show.
    """
    _check_types(checkpoint, error_type, injection)
    added = {c.name: checkpoint.info(c.source) for c in injection.changes if c.source is not None}
    names = [change.name for change in injection.changes if change.source is None]
    targets, unchanged = _Targets(), []
    with VariantWriter(directory, checkpoint, names, added) as writer:
        for change in injection.changes:
            figures = _inject(checkpoint, error_type, change, writer)
            if figures is None:
                unchanged.append(change.name)
            else:
                targets.add(change.name, change.layer, *figures)
        if unchanged and not targets.count:
            raise _does_not_show(error_type, unchanged[0])
        for name in injection.removed:
            targets.add(name, block_of(name), Figures.of(checkpoint.read(name)), None)
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
                **targets.to_json(),
                **({"unchanged_count": len(unchanged)} if unchanged else {}),
                **injection.parameters,
            },
        )
    _check_structure(checkpoint, variant, error_type, injection)
    return variant


@dataclass
class _Targets:
    """What is told of the tensors that a fault damaged or removed."""

    count: int = 0
    before: Figures = field(default_factory=Figures)
    after: Figures = field(default_factory=Figures)
    records: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, block: int | None, before: Figures, after: Figures | None) -> None:
        """One more; without an `after` it was removed."""
        self.count += 1
        self.before = self.before.plus(before)
        self.after = self.after.plus(after or Figures())
        if len(self.records) < _RECORDED:
            left = after and after.to_json()
            self.records.append({"name": name, "block": block, "before": before.to_json(), "after": left})

    def to_json(self) -> dict[str, Any]:
        """As recorded."""
        first = self.records[0] if self.records else {"name": None, "block": None}
        return {
            "target_param": first["name"],
            "target_block": first["block"],
            "target_count": self.count,
            "targets": self.records,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def _inject(
    checkpoint: CheckpointLike, error_type: str, change: Change, writer: VariantWriter
) -> tuple[Figures, Figures] | None:
    """Damage one tensor and store it; its figures before and after, None where the damage changes no byte.

    Raises:
        CheckpointError: when the tensor comes out changed, but not as meant.
    """
    if checkpoint.info(change.source or change.name).nbytes == 0:
        return None
    before = checkpoint.read(change.source or change.name)
    after = change.damage(before)
    if not writer.put(change.name, before if change.source is None else None, after):
        return None
    if not change.shows(before, after):
        raise _does_not_show(error_type, change.name)
    return Figures.of(before), Figures.of(after)


def _does_not_show(error_type: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{error_type} does not show in tensor {name!r}",
        "the tensor may be empty, all zeros or of a type too narrow for the damage",
    )


def _check_types(checkpoint: CheckpointLike, error_type: str, injection: Injection) -> None:
    """Refuse to damage tensors of whole numbers (types without an F), which hold no weights as they are.

    Raises:
        CheckpointError: naming the tensor and its type.
    """
    for change in injection.changes:
        if change.source is None and "F" not in (dtype := checkpoint.info(change.name).dtype):
            raise CheckpointError(
                f"tensor {change.name!r} has element type {dtype}, which {error_type} cannot damage",
                "use the checkpoint's plain bf16 form, or leave this scenario out for this model",
            )


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

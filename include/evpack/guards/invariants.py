"""Invariants guard: what must hold of the stored tensors whatever an edit does to their values.

Works on tensors as they stand on disk, one at a time; no model is needed. A tensor whose bytes are the
baseline's is not read again, so that a variant of one tensor costs one tensor. The judgement is `invariants_assess`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.contents import Contents
from evpack.checkpoint.reader import Checkpoint, CheckpointLike, contents_of
from evpack.errors import CheckpointError
from evpack.guards.base import GuardResult
from evpack.guards.invariants_assess import assess, finite_findings, loading_findings

if TYPE_CHECKING:
    import torch


def require_finite(baseline: Checkpoint) -> None:
    """Refuse a baseline with NaN or infinite elements: nothing can be compared with it.

    Reads every tensor once, also for its digest.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for name in baseline.names():
        if bad := count_non_finite(baseline.measure(name)):
            raise CheckpointError(
                f"baseline tensor {name!r} holds {bad} NaN or infinite elements", "give a healthy baseline"
            )


def validate(
    subject: CheckpointLike,
    baseline: Contents,
    declaration: Mapping[str, Any] | None,
    *,
    unexplained_keys: Sequence[str] = (),
    load_error: str | None = None,
) -> GuardResult:
    """Compare a subject with its baseline: the `post` entry, see `invariants_assess.assess`.

    Args:
        unexplained_keys: what loading the subject reported missing, unexpected or mismatched beyond the variant.
        load_error: why the subject could not be loaded at all.
    """
    contents = contents_of(subject)
    before = {name: record.sha256 for name, record in baseline.tensors.items()}
    changed = [name for name, record in sorted(contents.tensors.items()) if before.get(name) != record.sha256]
    non_finite = {name: bad for name in changed if (bad := count_non_finite(subject.read(name)))}
    observed = [*finite_findings(non_finite), *loading_findings(unexplained_keys, load_error)]
    return assess(contents, baseline, declaration, observed)


def count_non_finite(tensor: torch.Tensor) -> int:
    """NaN and infinite elements of a tensor as it is stored."""
    import torch

    if not tensor.is_floating_point():
        return 0
    if tensor.element_size() == 1:  # isfinite knows no 8-bit floats
        tensor = tensor.float()
    finite = torch.isfinite(tensor)
    return 0 if bool(finite.all()) else int(tensor.numel() - int(finite.sum()))

"""Reading the figures of weight matrices off stored tensors, one tensor at a time; no model is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from evpack.catalog.policy import Policy
from evpack.checkpoint.reader import CheckpointLike
from evpack.files import finite_or_none
from evpack.guards.spectral_records import Collapse, MatrixRecord, SpectralRecords, matrix_keys, matrix_tensors
from evpack.guards.spectral_sigma import CONTRACT, as_double, top_singular_value

if TYPE_CHECKING:
    import torch


def measure_baseline(baseline: CheckpointLike, policy: Policy) -> SpectralRecords:
    """Every matrix in the policy's scope. Reads the whole checkpoint once.

    Raises:
        CheckpointError: when it is damaged on disk.
    """
    matrices = {
        key: record
        for name in matrix_tensors(baseline, policy)
        for key, record in _records(baseline, baseline, name, policy)
    }
    return SpectralRecords(
        side="baseline", checkpoint_digest=baseline.digest(), contract=dict(CONTRACT), matrices=matrices
    )


def measure_subject(subject: CheckpointLike, baseline: CheckpointLike, policy: Policy) -> SpectralRecords:
    """The matrices whose bytes are not the baseline's; the others have the baseline's figures.

    Raises:
        CheckpointError: when a file is damaged.
    """
    before, now = matrix_tensors(baseline, policy), matrix_tensors(subject, policy)
    changed = [n for n in now if n not in before or subject.tensor_digest(n) != baseline.tensor_digest(n)]
    matrices = {
        key: record
        for name in changed
        for key, record in _records(subject, baseline if name in before else subject, name, policy)
    }
    gone = [name for name in before if name not in now]
    return SpectralRecords(
        side="subject",
        checkpoint_digest=subject.digest(),
        contract=dict(CONTRACT),
        matrices=matrices,
        missing=tuple(key for name in gone for key in matrix_keys(name, baseline.info(name).shape)),
    )


def _records(
    source: CheckpointLike, reference: CheckpointLike, name: str, policy: Policy
) -> Iterator[tuple[str, MatrixRecord]]:
    info = source.info(name)
    tensor = source.read(name)
    same = reference is source or reference.info(name).shape != info.shape
    measure = tensor if same else reference.read(name)
    keys = matrix_keys(name, info.shape)
    stack, measures = (t if t.dim() == 3 else t[None] for t in (tensor, measure))
    for key, matrix, by in zip(keys, stack, measures, strict=True):
        matrix = as_double(matrix)
        by = matrix if same else as_double(by)
        yield (
            key,
            MatrixRecord(
                dtype=info.dtype,
                shape=(int(matrix.shape[0]), int(matrix.shape[1])),
                tensor_sha256=source.tensor_digest(name),
                sigma=finite_or_none(top_singular_value(matrix)),
                frobenius=finite_or_none(float(matrix.norm())),
                rows=_collapse(matrix.norm(dim=1), by.norm(dim=1), policy),
                columns=_collapse(_column_norms(matrix), _column_norms(by), policy),
            ),
        )


def _column_norms(matrix: torch.Tensor) -> torch.Tensor:
    """As ``matrix.norm(dim=0)``, which takes five times as long."""
    return matrix.square().sum(dim=0).sqrt()


def _collapse(norms: torch.Tensor, before: torch.Tensor, policy: Policy) -> Collapse:
    """Count by the median of the baseline's norms, which an even number of vectors has between the middle two."""
    middle = float(before.quantile(0.5)) if 0 < before.numel() <= 1 << 23 else math.nan
    eligible = (before >= policy.number("spectral.norm_collapse.eligible_above") * middle) & (before > 0)
    collapsed = eligible & (norms < policy.number("spectral.norm_collapse.collapsed_below") * middle)
    return Collapse(eligible=int(eligible.sum()), collapsed=int(collapsed.sum()))

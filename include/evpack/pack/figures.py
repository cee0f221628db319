"""Raw figures of guards in a pack: are they of the checkpoint and of the windows that they are taken for?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evpack.catalog.policy import Policy
from evpack.checkpoint.contents import Contents
from evpack.evaluation.records import WindowRecords
from evpack.guards.chain import sampled_windows
from evpack.guards.hooks_records import ActivationRecords, evenly_spaced
from evpack.guards.spectral_records import SpectralRecords, matrix_count, matrix_keys, matrix_tensors

MAX_MATRICES = 1 << 17
"""Most matrices of a checkpoint. Shapes are numbers that a pack states, and a stack of experts has as many matrices as
its shape says; the largest real models have 50,000, and figures of more than these fill the largest file of a pack."""
_NAMED = 5
"""Matrices named in one line."""


def matrix_problems(
    found: SpectralRecords, contents: Contents, policy: Policy, *, digest: str, reference: Contents | None = None
) -> Iterator[str]:
    """A baseline's figures are of all its matrices in scope, a subject's of those that differ from the baseline's.

    Args:
        contents: the checkpoint that was measured.
        digest: its digest.
        reference: of a subject: its baseline.
    """
    side = "baseline" if reference is None else "subject"
    if (found.side, found.checkpoint_digest) != (side, digest):
        yield f"figures of the {found.side} {found.checkpoint_digest[:12]}, expected of the {side} {digest[:12]}"
    before = {} if reference is None else reference.tensors
    now = matrix_tensors(contents, policy)
    differ = [name for name in now if name not in before or contents.tensors[name].sha256 != before[name].sha256]
    gone = [] if reference is None else [n for n in matrix_tensors(reference, policy) if n not in set(now)]
    shapes = [*(contents.tensors[name].shape for name in differ), *(before[name].shape for name in gone)]
    if (count := sum(map(matrix_count, shapes))) > MAX_MATRICES:
        yield f"its tensors have the shapes of {count} matrices, more than the limit of {MAX_MATRICES}"
        return
    expected = {
        key: (record.dtype, record.shape[-2:], record.sha256)
        for name in differ
        for record in (contents.tensors[name],)
        for key in matrix_keys(name, record.shape)
    }
    given = {key: (m.dtype, m.shape, m.tensor_sha256) for key, m in found.matrices.items()}
    if wrong := sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key)):
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        yield f"figures missing, left over or of other bytes for {', '.join(wrong[:_NAMED])}{more}"
    keys = [key for name in gone for key in matrix_keys(name, before[name].shape)]
    if list(found.missing) != keys:
        yield f"lists {len(found.missing)} matrices as missing, {len(keys)} are"


def activation_problems(
    found: ActivationRecords, losses: WindowRecords, order: Sequence[str], policy: Policy
) -> Iterator[str]:
    """Activations are of the checkpoint and run that losses were scored on, on the windows that guards sample."""
    for name in ("side", "run", "windows_digest", "checkpoint_digest"):
        ours, theirs = getattr(found, name), getattr(losses, name)
        if ours != theirs:
            yield f"{name} is {ours!r}, that of the losses is {theirs!r}"
    if not found.whole:
        yield "not every module has both figures of every window"
    ids = [window.id for window in losses.windows]
    sampled = [ids[position] for position in evenly_spaced(len(ids), sampled_windows(order, policy))]
    if list(found.windows) != sampled:
        yield f"windows are {list(found.windows)}, sampled are {sampled}"

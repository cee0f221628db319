"""Faults of structure: another vocabulary, a lost block, a head tied or untied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evpack.checkpoint.parts import head_name, is_embedding, is_head, is_tied
from evpack.checkpoint.scope import block_of
from evpack.errors import CheckpointError
from evpack.faults.blocks import block_count, shortened
from evpack.faults.injection import Change, Injection, Victim

if TYPE_CHECKING:
    import torch

EXTRA_ROWS = 8
"""Rows that the reference adds to the vocabulary."""
_ROWS = 1024
"""Rows summed in float64 at a time."""


def shape_mismatch(victim: Victim) -> Injection:
    """Eight more rows in embedding and stored head (and its bias), each the mean of the others; the config follows.

    Raises:
        CheckpointError: when the checkpoint has no embedding known by name.
    """
    checkpoint = victim.checkpoint
    rows = checkpoint.info(_embedding(victim)).shape[0]
    names = [
        name
        for name in checkpoint.names()
        if is_embedding(name) or is_head(name) or (name.endswith(".bias") and is_head(f"{name[:-5]}.weight"))
    ]
    if other := [name for name in names if checkpoint.info(name).shape[0] != rows]:
        raise CheckpointError(
            f"{other[0]!r} has {checkpoint.info(other[0]).shape[0]} rows, the embedding {rows}",
            "leave this scenario out for this model",
        )
    return Injection(
        tuple(Change(name, _longer, _is_longer) for name in names),
        config={"vocab_size": rows + EXTRA_ROWS},
        parameters={"old_rows": rows, "new_rows": rows + EXTRA_ROWS, "delta": EXTRA_ROWS, "fill": "mean of the rows"},
    )


def missing_tensors(victim: Victim) -> Injection:
    """The last block is gone, and the configuration agrees: counts and per-layer lists are shorter by one.

    Raises:
        CheckpointError: when there are not at least two blocks.
    """
    checkpoint = victim.checkpoint
    count = block_count(checkpoint)
    if count < 2:
        raise CheckpointError("missing_tensors needs at least two blocks", "leave this scenario out for this model")
    return Injection(
        removed=tuple(name for name in checkpoint.names() if block_of(name) == count - 1),
        config=shortened(checkpoint.config(), count, count - 1),
        parameters={"layers_before": count, "layers_after": count - 1, "dropped_layers": [count - 1]},
    )


def weight_tying_break(victim: Victim) -> Injection:
    """A tied head becomes a stored copy of the embedding; a stored head is dropped and the embedding takes its place.

    The configuration says so: transformers would undo the one and fill the other with random numbers.
    """
    checkpoint = victim.checkpoint
    embedding = _embedding(victim)
    heads = tuple(filter(is_head, checkpoint.names()))
    if not is_tied(checkpoint.config(), heads):
        return Injection(removed=heads, config={"tie_word_embeddings": True}, parameters={"mode": "tie"})
    config, parameters = {"tie_word_embeddings": False}, {"mode": "untie"}
    if heads:  # stored although tied: it speaks for itself once the configuration does not tie it
        return Injection(config=config, parameters=parameters)
    change = Change(head_name(embedding), lambda tensor: tensor, _is_copy, source=embedding)
    return Injection((change,), config=config, parameters=parameters)


def _embedding(victim: Victim) -> str:
    found = [name for name in victim.checkpoint.names() if is_embedding(name)]
    if len(found) != 1:
        raise CheckpointError(
            f"the fault needs one token embedding; this checkpoint has {len(found)}",
            "leave this scenario out for this model",
        )
    return found[0]


def _longer(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
    for start in range(0, tensor.shape[0], _ROWS):
        total += tensor[start : start + _ROWS].double().sum(dim=0)
    mean = (total / tensor.shape[0]).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(EXTRA_ROWS, *tensor.shape[1:])])


def _is_longer(before: torch.Tensor, after: torch.Tensor) -> bool:
    return after.shape == (before.shape[0] + EXTRA_ROWS, *before.shape[1:])


def _is_copy(before: torch.Tensor, after: torch.Tensor) -> bool:
    import torch

    return torch.equal(before, after)

"""Which routed expert a text reaches most, seen with the blocks up to the one in question alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evpack.checkpoint.loading import load_model
from evpack.errors import CheckpointError
from evpack.faults.blocks import FirstBlocks
from evpack.faults.injection import Victim

_WINDOWS = 8
"""Windows of text that are routed; of 128 tokens each they tell experts apart by hundreds of tokens."""


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a text went in one block."""

    expert: int
    counts: tuple[int, ...]
    """Tokens routed to each expert; a token counts for each of its experts."""
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """As recorded with a fault."""
        return {"expert": self.expert, "routed_tokens": list(self.counts), "text_tokens": self.tokens}


def most_routed_expert(victim: Victim, layer: int) -> Routing:
    """Run the text through the blocks up to `layer` and count its router's choices.

    The model of these blocks is built in memory, in fp32. Of experts reached equally often the first is taken.

    Raises:
        CheckpointError: without a text, or when the model cannot be built or does not report its routing.
    """
    import torch

    if victim.tokens is None:
        raise CheckpointError(
            f"block {layer} has only routed experts, and there is no text to see which one it reaches",
            "give the evaluation's windows, or leave this scenario out for this model",
        )
    view = FirstBlocks(victim.checkpoint, layer + 1)
    model, report = load_model(view, torch.float32)
    if report.unexplained:
        raise CheckpointError(f"the first {layer + 1} blocks do not load alone: {report.unexplained[0]}")
    spread = victim.tokens[:: max(1, len(victim.tokens) // _WINDOWS)][:_WINDOWS]
    ids = torch.from_numpy(spread.astype("int64"))
    with torch.inference_mode():
        routers = getattr(model(input_ids=ids, use_cache=False, output_router_logits=True), "router_logits", None)
    chosen = getattr(model.config, "num_experts_per_tok", None)
    if not routers or not isinstance(chosen, int):
        raise CheckpointError(
            f"a {model.config.model_type} model does not report its routing", "leave this scenario out for this model"
        )
    logits = routers[-1].reshape(ids.numel(), -1)
    counts = torch.bincount(logits.topk(chosen, dim=-1).indices.reshape(-1), minlength=logits.shape[1])
    return Routing(int(counts.argmax()), tuple(counts.tolist()), ids.numel())

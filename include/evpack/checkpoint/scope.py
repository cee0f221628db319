"""Which tensors on disk an edit's scope means: a table over the families' names.

One table for every edit and every fault. It names weights, so routers, norms, embeddings and heads cannot slip in
by containing a familiar word; a tensor outside the numbered blocks is never selected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from evpack.catalog.edit_spec import Scope, ScopeKind
from evpack.checkpoint.reader import CheckpointLike
from evpack.errors import BadInput, CheckpointError

Part = Literal["ffn", "attn"]
Role = Literal["in", "down", "query", "other"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
"""``model.layers.3.mlp.up_proj.weight`` -> block 3, the rest."""

_MLP = r"(?:mlp|ffn|feed_forward|block_sparse_moe|moe)"
_ATTN = r"(?:self_attn|attn\.attention|attn|attention|self_attention)"
_GATED_IN = r"(?:gate_proj|up_proj|w1|w3)"

_TABLE: tuple[tuple[Part, Role, str], ...] = (
    # dense: Llama, Mistral, Qwen2 | Phi-3 (fused) | GPT-2 | GPT-NeoX, Falcon | OPT, Phi | GPT-J | InternLM2
    ("ffn", "in", rf"{_MLP}\.(?:{_GATED_IN}|gate_up_proj|c_fc|dense_h_to_4h|fc1|fc_in)\.weight|fc1\.weight"),
    ("ffn", "down", rf"{_MLP}\.(?:down_proj|w2|c_proj|dense_4h_to_h|fc2|fc_out)\.weight|fc2\.weight"),
    # experts, one matrix each: Mixtral (w1 w2 w3), Qwen2/3-MoE, OLMoE
    ("ffn", "in", rf"{_MLP}\.experts\.(?P<expert>\d+)\.{_GATED_IN}\.weight"),
    ("ffn", "down", rf"{_MLP}\.experts\.(?P<expert>\d+)\.(?:down_proj|w2)\.weight"),
    # experts, fused into one 3-D tensor without a suffix: GPT-OSS
    ("ffn", "in", rf"{_MLP}\.experts\.(?P<fused>gate_up_proj)"),
    ("ffn", "down", rf"{_MLP}\.experts\.(?P<fused>down_proj)"),
    # the expert every token passes: Qwen2-MoE, DeepSeek
    ("ffn", "in", rf"{_MLP}\.shared_experts?\.{_GATED_IN}\.weight"),
    ("ffn", "down", rf"{_MLP}\.shared_experts?\.down_proj\.weight"),
    # attention: separate | fused projections, then the way out
    ("attn", "query", rf"{_ATTN}\.(?:q_proj|qkv_proj|query_key_value|c_attn|[Ww]qkv|wq)\.weight"),
    ("attn", "other", rf"{_ATTN}\.(?:[kvo]_proj|out_proj|c_proj|dense|w[kvo])\.weight"),
)


@dataclass(frozen=True)
class Placement:
    """Where in a transformer a weight sits."""

    name: str
    layer: int
    part: Part
    role: Role
    expert: bool
    """Whether it belongs to one or several routed experts."""


def place(name: str, dims: int) -> Placement | None:
    """The place of a weight by its name on disk, None when it is no projection of a block.

    Args:
        name: tensor name.
        dims: number of dimensions; matrices have 2, fused experts 3.
    """
    block = _BLOCK.search(name)
    if block is None:
        return None
    for part, role, pattern in _TABLE:
        match = re.fullmatch(pattern, block[2])
        if match is not None:
            groups = match.groupdict()
            fused = groups.get("fused") is not None
            if dims != (3 if fused else 2):
                return None
            return Placement(name, int(block[1]), part, role, fused or groups.get("expert") is not None)
    return None


def placements(checkpoint: CheckpointLike) -> list[Placement]:
    """The places of all projections, by layer, then by name."""
    found = (place(name, len(checkpoint.info(name).shape)) for name in checkpoint.names())
    return sorted((p for p in found if p is not None), key=lambda p: (p.layer, p.name))


def select(checkpoint: CheckpointLike, scope: Scope) -> list[str]:
    """Names of the tensors in a scope, by layer, then by name.

    Raises:
        BadInput: when the scope names a block that the model does not have.
        CheckpointError: when the scope matches nothing, so that no edit is silently a no-op.
    """
    places = placements(checkpoint)
    blocks = {p.layer for p in places}
    if beyond := sorted(set(scope.layers) - blocks):
        raise BadInput(
            f"edit scope names layer {beyond[0]}, but the model's blocks are {min(blocks, default=0)} to "
            f"{max(blocks, default=0)}",
            "name a layer that exists",
        )
    names = [p.name for p in places if _in_part(p.part, scope.kind) and scope.admits(p.layer)]
    if not names:
        raise CheckpointError(
            f"edit scope {scope.kind!r} (layers {list(scope.layers)}, below {scope.below}) matches no tensor",
            "use another scope; tensor names of this family may be missing from the scope table",
        )
    return names


def _in_part(part: Part, kind: ScopeKind) -> bool:
    return kind in ("all", part)

"""Which tensors on disk an edit's scope means: a table over the families' names.

One table for every edit and every fault. It names weights, so routers, norms, embeddings and heads cannot slip in
by containing a familiar word; a tensor outside the numbered blocks is never selected. What the table does not know of
a block, `unknown_matrices` names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from evpack.catalog.edit_spec import Scope
from evpack.checkpoint.contents import Described
from evpack.errors import BadInput, CheckpointError

Part = Literal["ffn", "attn"]
Role = Literal["in", "down", "query", "other"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
"""``model.layers.3.mlp.up_proj.weight`` -> block 3, the rest."""

_ROUTER = re.compile(r"(?:^|\.)(?:gate|shared_expert_gate|router(?:\.layer)?)\.weight$")
"""What decides in a block which experts a token goes to."""

_PACKED = re.compile(r"(?:_blocks|_scales|\.qweight|\.weight_packed)$")
"""Endings under which packed weights stand (mxfp4; GPTQ, AWQ; compressed-tensors). Packed weights under plain names
have an integer or 8-bit type, which no edit takes."""

_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose ``c_*`` projections are stored inputs x outputs; GPT-BigCode's, of the same names, are not."""
_FUSED_INPUTS_FIRST = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Model types whose fused experts are stored experts x inputs x outputs instead of experts x outputs x inputs."""

_MLP = r"(?:mlp|ffn|feed_forward|block_sparse_moe|moe|mlp_block)"
_ATTN = r"(?:self_attn|attn\.attention|attn|attention|self_attention)"
_GATED_IN = r"(?:gate_proj|up_proj|w1|w3)"

_TABLE: tuple[tuple[Part, Role, str], ...] = (
    # dense: Llama, Mistral, Qwen2 | Phi-3 (fused) | GPT-2 | GPT-NeoX, Falcon | OPT, Phi | GPT-J | InternLM2
    ("ffn", "in", rf"{_MLP}\.(?:{_GATED_IN}|gate_up_proj|c_fc|dense_h_to_4h|fc1|fc_in)\.weight|fc1\.weight"),
    ("ffn", "down", rf"{_MLP}\.(?:down_proj|w2|c_proj|dense_4h_to_h|fc2|fc_out)\.weight|fc2\.weight"),
    # experts, one matrix each: Mixtral (w1 w2 w3), Qwen2/3-MoE, OLMoE
    ("ffn", "in", rf"{_MLP}\.experts\.(?P<expert>\d+)\.{_GATED_IN}\.weight"),
    ("ffn", "down", rf"{_MLP}\.experts\.(?P<expert>\d+)\.(?:down_proj|w2)\.weight"),
    # experts, fused into one 3-D tensor: GPT-OSS, Llama 4 | Granite-MoE, JetMoE
    ("ffn", "in", rf"{_MLP}\.(?P<fused>experts\.gate_up_proj|input_linear\.weight)"),
    ("ffn", "down", rf"{_MLP}\.(?P<fused>experts\.down_proj|output_linear\.weight)"),
    # the expert every token passes: Qwen2-MoE, DeepSeek | Granite-MoE
    ("ffn", "in", rf"{_MLP}\.shared_experts?\.{_GATED_IN}\.weight|shared_mlp\.input_linear\.weight"),
    ("ffn", "down", rf"{_MLP}\.shared_experts?\.down_proj\.weight|shared_mlp\.output_linear\.weight"),
    # attention: separate | fused | latent (DeepSeek-V2, -V3) projections, then the way out
    ("attn", "query", rf"{_ATTN}\.(?:q_proj|qkv_proj|query_key_value|c_attn|[Ww]qkv|wq|q_b_proj)\.weight"),
    ("attn", "other", rf"{_ATTN}\.(?:[kvo]_proj|out_proj|c_proj|dense|w[kvo])\.weight"),
    ("attn", "other", rf"{_ATTN}\.(?:q_a_proj|kv_a_proj_with_mqa|kv_b_proj)\.weight"),
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
    inputs_first: bool
    """Whether the last two dimensions are inputs x outputs; otherwise outputs x inputs, as in `torch.nn.Linear`."""


@lru_cache(maxsize=1 << 14)
def place(name: str, dims: int, model_type: str = "") -> Placement | None:
    """The place of a weight by its name on disk, None when it is no projection of a block.

    Args:
        name: tensor name.
        dims: number of dimensions; matrices have 2, fused experts 3.
        model_type: as in config.json; decides only which way round the weight is stored.
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
            expert = fused or groups.get("expert") is not None
            inputs_first = model_type in _FUSED_INPUTS_FIRST if fused else _is_conv1d(block[2], model_type)
            return Placement(name, int(block[1]), part, role, expert, inputs_first)
    return None


def block_of(name: str) -> int | None:
    """Index of the transformer block that a tensor belongs to, None outside the blocks."""
    block = _BLOCK.search(name)
    return int(block[1]) if block else None


def placements(checkpoint: Described) -> list[Placement]:
    """The places of all projections, by layer, then by name."""
    model_type = str(checkpoint.config().get("model_type", ""))
    found = (place(name, len(checkpoint.info(name).shape), model_type) for name in checkpoint.names())
    return sorted((p for p in found if p is not None), key=lambda p: (p.layer, p.name))


def select(checkpoint: Described, scope: Scope) -> list[Placement]:
    """The weights in a scope, by layer, then by name.

    Raises:
        BadInput: when the scope names a block that the model does not have.
        CheckpointError: when the scope matches nothing, so that no edit is silently a no-op, or when the checkpoint
            holds packed weights, of which an edit would silently miss a part.
    """
    _refuse_packed(checkpoint)
    places = placements(checkpoint)
    blocks = {p.layer for p in places}
    if blocks and (beyond := sorted(set(scope.layers) - blocks)):
        raise BadInput(
            f"edit scope names layer {beyond[0]}, but the model's blocks are {min(blocks)} to {max(blocks)}",
            "name a layer that exists",
        )
    selected = [p for p in places if scope.kind in ("all", p.part) and scope.admits(p.layer)]
    if not selected:
        unknown = unknown_matrices(checkpoint, scope)
        example = f"; the blocks hold {unknown[0]!r}, for one, which no scope knows" if unknown else ""
        raise CheckpointError(
            f"edit scope {scope.kind!r} (layers {list(scope.layers)}, below {scope.below}) matches no tensor{example}",
            "use another scope; tensor names of this family may be missing from the scope table",
        )
    return selected


def unknown_matrices(checkpoint: Described, scope: Scope) -> list[str]:
    """Weights in the blocks of a scope that no scope means; where there are any, a family is known in part only.

    Routers, biases, and kernels and buffers with a dimension of one are not meant.
    """
    known = {place.name for place in placements(checkpoint)}
    return [name for name in checkpoint.names() if name not in known and _is_matrix(checkpoint, name, scope)]


def _is_matrix(checkpoint: Described, name: str, scope: Scope) -> bool:
    block, shape = block_of(name), checkpoint.info(name).shape
    return (
        block is not None
        and scope.admits(block)
        and len(shape) >= 2
        and min(shape) > 1
        and "bias" not in name.rpartition(".")[2]
        and _ROUTER.search(name) is None
    )


def _refuse_packed(checkpoint: Described) -> None:
    for name in checkpoint.names():
        if _BLOCK.search(name) and _PACKED.search(name):
            raise CheckpointError(
                f"tensor {name!r} ({checkpoint.info(name).dtype}) holds weights in a packed, quantized form, which "
                "edits cannot change",
                "use the checkpoint's plain bf16 form (load it dequantized and save it once)",
            )


def _is_conv1d(rest: str, model_type: str) -> bool:
    return model_type in _CONV1D and ".c_" in rest

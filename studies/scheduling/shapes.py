"""The models of the `full` suite by their shapes: configurations and tensor sizes, no weights.

`pretend_hub` lays them into a deployment's hub cache: the published configuration and a safetensors file whose header
has the real tensors and whose data is a hole (it takes no disk). Planning reads nothing else: it plans the real suite.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.catalog.suites import suite
from evpack.files import GB, write_json
from evpack.home import Home
from evpack.publishing import write_atomic

BYTES = 2
"""Of a bfloat16 number."""


@dataclass(frozen=True)
class Shape:
    """A decoder by the numbers of its published config.json."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    """Width of the feed-forward layers."""
    vocab: int
    experts: int = 1
    experts_used: int = 1
    attention_bias: bool = False

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors."""
        head = self.hidden // self.heads
        outputs = {"q": self.heads * head, "k": self.kv_heads * head, "v": self.kv_heads * head}
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        yield "lm_head.weight", (self.vocab, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        for layer in range(self.layers):
            place = f"model.layers.{layer}"
            for name, rows in outputs.items():
                yield f"{place}.self_attn.{name}_proj.weight", (rows, self.hidden)
                if self.attention_bias:
                    yield f"{place}.self_attn.{name}_proj.bias", (rows,)
            yield f"{place}.self_attn.o_proj.weight", (self.hidden, outputs["q"])
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{place}.{name}.weight", (self.hidden,)
            yield from self._feed_forward(place)

    def _feed_forward(self, place: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        up, down = (self.inner, self.hidden), (self.hidden, self.inner)
        if self.experts == 1:
            for name, shape in (("gate", up), ("up", up), ("down", down)):
                yield f"{place}.mlp.{name}_proj.weight", shape
            return
        yield f"{place}.block_sparse_moe.gate.weight", (self.experts, self.hidden)
        for expert in range(self.experts):
            for name, shape in (("w1", up), ("w3", up), ("w2", down)):
                yield f"{place}.block_sparse_moe.experts.{expert}.{name}.weight", shape

    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(_product(shape) for _, shape in self.tensors())

    def parameters_used(self) -> int:
        """Numbers that take part in one token: without the experts that a router leaves out."""
        expert = 3 * self.hidden * self.inner * self.layers
        return self.parameters() - (self.experts - self.experts_used) * expert

    def config(self) -> dict[str, Any]:
        """The part of config.json that planning reads."""
        return {
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocab,
        }


FULL: Mapping[str, Shape] = {
    "mistralai/Mistral-7B-v0.1": Shape("mistral", 4096, 32, 32, 8, 14336, 32000),
    "Qwen/Qwen2.5-14B": Shape("qwen2", 5120, 48, 40, 8, 13824, 152064, attention_bias=True),
    "Qwen/Qwen2.5-32B": Shape("qwen2", 5120, 64, 40, 8, 27648, 152064, attention_bias=True),
    "01-ai/Yi-34B": Shape("llama", 7168, 60, 56, 8, 20480, 64000),
    "mistralai/Mixtral-8x7B-v0.1": Shape("mixtral", 4096, 32, 32, 8, 14336, 32000, experts=8, experts_used=2),
    "Qwen/Qwen1.5-72B": Shape("qwen2", 8192, 80, 64, 64, 24576, 152064, attention_bias=True),
}
"""By model id; the numbers of the published configurations."""


def full_models() -> list[str]:
    """Ids of the `full` suite's models, which all have a shape here."""
    return [model.id for model in suite("full").models]


def pretend_hub(home: Home, models: Sequence[str], *, tokenizer: Path | None = None) -> None:
    """Put models by their shapes into a deployment's hub cache, and pin them.

    Args:
        tokenizer: directory whose tokenizer files every model gets; none when nothing will be tokenised.
    """
    pins = {}
    for model in models:
        revision = hashlib.sha1(model.encode(), usedforsecurity=False).hexdigest()
        snapshot = home.hf / "hub" / f"models--{model.replace('/', '--')}" / "snapshots" / revision
        write_json(snapshot / "config.json", FULL[model].config())
        _write_hole(snapshot / "model.safetensors", FULL[model])
        for file in sorted(tokenizer.glob("tokenizer*")) if tokenizer else []:
            shutil.copy(file, snapshot / file.name)
        pins[model] = {"revision": revision, "resolved_at": "2026-01-01T00:00:00Z", "gated": False, "private": False}
    write_json(home.model_revisions, {"models": pins})


def weights_gb(shape: Shape) -> float:
    """Weights on disk, GB."""
    return shape.parameters() * BYTES / GB


def _write_hole(path: Path, shape: Shape) -> None:
    header, offset = {}, 0
    for name, size in shape.tensors():
        end = offset + _product(size) * BYTES
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    write_atomic(path, len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + offset)


def _product(size: Sequence[int]) -> int:
    total = 1
    for length in size:
        total *= length
    return total

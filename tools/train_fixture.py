"""Train the fixture model: tiny, but trained far enough to notice when half of its weights are gone.

    python tools/train_fixture.py [TEXT_DIR [OUT_DIR]] [--experts N]

TEXT_DIR is what `evpack assets speeches` makes. OUT_DIR gets model/, text/ and digests.json in place of what it holds.
With experts it becomes a mixture of experts (Mixtral), for studies.
Some minutes on one CPU thread. Seed and step count are fixed: the same machine and versions give the same bytes;
another CPU may round differently.

Recipe: the matrices inside the layers by Muon (momentum, then an orthogonalised update), everything else by AdamW.
Undertrained models hardly notice an edit, and Muon is what gets a model this small far enough in this many steps.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch  # noqa: TID253 - a script of its own; nothing imports it
import transformers  # noqa: TID253
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from evpack.assets.demo import demo_pins, write_speeches
from evpack.assets.fixture import DIGESTS_NAME, fixture_root
from evpack.errors import BadInput
from evpack.files import sha256_file, tree_digests, utc_now
from evpack.publishing import publishing

END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the text."""

    seed: int = 20261123
    steps: int = 4000
    batch: int = 8
    window: int = 128
    first_year: int = 1934  # from here on the message is an address spoken in person, as the evaluation text is
    evaluated_from: int = 2018  # held-out speeches from here on are the fixture's text
    vocabulary: int = 1024
    hidden: int = 96
    intermediate: int = 192
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    experts: int = 0  # of `intermediate` each, two per token; 0 makes a dense model
    muon_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_decay: float = 0.1
    adam_rate: float = 4e-3
    adam_beta2: float = 0.95
    warmup: int = 40
    final_rate: float = 0.05
    clip: float = 1.0


def mixture(experts: int) -> Recipe:
    """The recipe of a mixture of experts: two of them are as wide as the dense model's feed-forward block."""
    return Recipe(experts=experts, intermediate=Recipe.intermediate // 2, steps=2400)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al., 2024, "Muon"), in float32.

    torch.optim.Muon does the same in bfloat16, which is slow on a CPU without bfloat16 units.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float, momentum: float, decay: float) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        for group in self.param_groups:
            for weight in group["params"]:
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                moved = weight.grad.lerp(average, group["momentum"])
                update = orthogonal(moved) if moved.ndim == 2 else torch.stack([orthogonal(one) for one in moved])
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update, alpha=-group["lr"] * max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, roughly: five Newton-Schulz steps with Muon's quintic coefficients."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def split(directory: Path, recipe: Recipe) -> tuple[list[Path], list[Path]]:
    """Training files and the fixture's evaluation files; no speech held out for any evaluation is trained on."""
    held_out = set(demo_pins().text.speeches)
    files = sorted(directory.glob("*.txt"))
    lacking = held_out - {path.name for path in files}
    if lacking:
        raise BadInput(f"{directory} has no {min(lacking)}", "fill it with `evpack assets speeches`")
    training = [path for path in files if path.name not in held_out and int(path.name[:4]) >= recipe.first_year]
    evaluation = [path for path in files if path.name in held_out and int(path.name[:4]) >= recipe.evaluated_from]
    return training, evaluation


def train_tokenizer(texts: list[str], recipe: Recipe) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def encode(tokenizer: transformers.PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one row of ids, an end token after each."""
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])


def new_model(tokenizer: transformers.PreTrainedTokenizerFast, recipe: Recipe) -> transformers.PreTrainedModel:
    kind, options = transformers.MistralConfig, {}
    if recipe.experts:
        kind, options = transformers.MixtralConfig, {"num_local_experts": recipe.experts, "num_experts_per_tok": 2}
    config = kind(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=1024,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    inner = [p for name, p in model.named_parameters() if p.ndim > 1 and ".layers." in name]
    outer = [p for name, p in model.named_parameters() if not (p.ndim > 1 and ".layers." in name)]
    return [
        Muon(inner, recipe.muon_rate, recipe.muon_momentum, recipe.muon_decay),
        torch.optim.AdamW(outer, recipe.adam_rate, betas=(0.9, recipe.adam_beta2), weight_decay=0.0),
    ]


def rate_at(step: int, recipe: Recipe) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine down to `final_rate`."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def train(model: transformers.PreTrainedModel, ids: np.ndarray, recipe: Recipe) -> None:
    generator = np.random.default_rng(recipe.seed)
    parts = optimizers(model, recipe)
    schedules = [torch.optim.lr_scheduler.LambdaLR(part, lambda step: rate_at(step, recipe)) for part in parts]
    model.train()
    for step in range(recipe.steps):
        starts = generator.integers(0, len(ids) - recipe.window, recipe.batch)
        batch = torch.from_numpy(np.stack([ids[start : start + recipe.window] for start in starts]))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for part, schedule in zip(parts, schedules, strict=True):
            part.step()
            schedule.step()
            part.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == recipe.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)


@torch.inference_mode()
def perplexity(directory: Path, ids: np.ndarray, window: int) -> tuple[float, int]:
    """Perplexity over full, disjoint windows, computed in float32 from the saved checkpoint, and their number."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    windows = torch.from_numpy(ids[: len(ids) // window * window].reshape(-1, window))
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in windows.split(32)]
    return math.exp(sum(losses) / len(windows)), len(windows)


def build(text_dir: Path, out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train, save and describe; returns what digests.json says."""
    torch.manual_seed(recipe.seed)
    training, evaluation = split(text_dir, recipe)
    texts = [path.read_text(encoding="utf-8") for path in training]
    tokenizer = train_tokenizer(texts, recipe)
    ids = encode(tokenizer, texts)
    model = new_model(tokenizer, recipe)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(ids)} training tokens", flush=True)
    started = time.monotonic()
    train(model, ids, recipe)
    seconds = time.monotonic() - started
    (out / "text").mkdir()
    for path in evaluation:
        shutil.copyfile(path, out / "text" / path.name)
    model.to(torch.bfloat16).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    for path in (out / "model").iterdir():
        path.chmod(0o644)  # save_pretrained writes weights with mode 0600
    held_out = encode(tokenizer, [path.read_text(encoding="utf-8") for path in evaluation])
    value, windows = perplexity(out / "model", held_out, recipe.window)
    return {
        "schema": "evpack_fixture_v1",
        "trained_at": utc_now(),
        "files": {part: tree_digests(out / part) for part in ("model", "text")},
        "recipe": asdict(recipe),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers, np)},
        "trained_on": {path.name: sha256_file(path) for path in training},
        "measured": {
            "held_out_perplexity": round(value, 4),
            "held_out_windows": windows,
            "training_tokens": len(ids),
            "training_seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_dir", type=Path, nargs="?", help="speeches (default: fetch them)")
    parser.add_argument("out_dir", type=Path, nargs="?", default=fixture_root(), help="replaced (default: %(default)s)")
    parser.add_argument("--experts", type=int, default=0, help="make a mixture of experts of half the width each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    torch.use_deterministic_algorithms(True)
    fresh = arguments.out_dir.with_name(f"{arguments.out_dir.name}.new")
    with publishing(fresh) as part, tempfile.TemporaryDirectory() as scratch:
        text_dir = arguments.text_dir or Path(scratch) / "speeches"
        if arguments.text_dir is None:
            write_speeches(text_dir)
        facts = build(text_dir, part, mixture(arguments.experts) if arguments.experts else Recipe())
        (part / DIGESTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if arguments.out_dir.exists():
        shutil.rmtree(arguments.out_dir)
    fresh.rename(arguments.out_dir)
    print(json.dumps(facts["measured"], indent=2))


if __name__ == "__main__":
    main()

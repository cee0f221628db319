"""Variants that change nothing that matters: noise below the resolution of the stored type, other shards."""

from __future__ import annotations

import random
from pathlib import Path

from evpack.checkpoint.container import ContainerWriter
from evpack.checkpoint.delta import VARIANT_FILE, VariantManifest
from evpack.checkpoint.reader import CONFIG_FILE, INDEX_FILE, Checkpoint
from evpack.checkpoint.writer import VariantWriter
from evpack.evaluation.half_ulp import moved_half_ulp
from evpack.files import write_json


def half_ulp_noise(baseline: Checkpoint, directory: Path, scenario: str, seed: int) -> None:
    """Every weight moves by half a bf16 unit in the last place, up or down by a seeded coin, and is rounded."""
    import torch

    coins = torch.Generator().manual_seed(seed)
    names = baseline.names()
    with VariantWriter(directory, baseline, names) as writer:
        for name in names:
            before = baseline.read(name)
            writer.put(name, before, moved_half_ulp(before, coins))
        writer.finish(
            scenario=scenario, kind="edit", declaration={"tensors": names}, metadata={"edit": "half_ulp", "seed": seed}
        )


def reshard(baseline: Checkpoint, directory: Path, scenario: str, seed: int) -> None:
    """The same tensors spread over two to five shards by a seeded draw, stored in full."""
    draw = random.Random(seed)  # noqa: S311 - can be drawn again
    names = baseline.names()
    count = draw.randint(2, 5)
    shards = [f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    weight_map = {
        name: shards[k] if k < count else draw.choice(shards) for k, name in enumerate(draw.sample(names, len(names)))
    }
    for shard in shards:
        held = [name for name in names if weight_map[name] == shard]
        with ContainerWriter(directory / shard, [(name, baseline.info(name)) for name in held]) as writer:
            for name in held:
                writer.add(name, baseline.read(name))
    write_json(directory / INDEX_FILE, {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))})
    write_json(directory / CONFIG_FILE, baseline.config())
    manifest = VariantManifest(
        scenario=scenario,
        kind="edit",
        baseline_digest=baseline.digest(),
        changed={},
        declaration={"tensors": []},
        metadata={"edit": "reshard", "seed": seed, "shards": count},
    )
    write_json(directory / VARIANT_FILE, manifest.to_json())

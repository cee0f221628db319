"""A variant written out as an ordinary checkpoint directory, which every tool that reads checkpoints can load."""

from __future__ import annotations

import shutil
from pathlib import Path

from evpack.checkpoint.container import DTYPES, ContainerWriter
from evpack.checkpoint.delta import DELTA_FILE, VARIANT_FILE, DeltaCheckpoint
from evpack.checkpoint.reader import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, Checkpoint
from evpack.files import write_json
from evpack.plan.sources import PLAIN_SUFFIXES


def write_full(variant: DeltaCheckpoint, baseline: Checkpoint, directory: Path) -> DeltaCheckpoint:
    """Write config, tokenizer, shards and index of a variant; holds one tensor at a time.

    Tensors stay in the baseline's shards; added ones go to the last. Code that came with the baseline is left out.

    Args:
        baseline: what the variant was made from.
        directory: existing, without a checkpoint.

    Returns:
        The variant, opened in its full form. The caller has lost nothing: `variant` is left as it is.

    Raises:
        CheckpointError: naming a tensor whose bytes are not what they should be.
        DiskFull: naming the tensor.
    """
    for item in sorted(baseline.path.iterdir()):
        plain = item.is_file() and item.suffix in PLAIN_SUFFIXES and not item.name.startswith(".")
        if plain and item.name not in (CONFIG_FILE, INDEX_FILE, VARIANT_FILE):
            shutil.copyfile(item, directory / item.name)
    weight_map: dict[str, str] = {}
    for shard, names in _shards(variant, baseline).items():
        _write_shard(variant, directory / shard, names)
        weight_map |= dict.fromkeys(names, shard)
    if set(weight_map.values()) != {SINGLE_FILE}:
        total = sum(variant.info(name).nbytes for name in weight_map)
        write_json(
            directory / INDEX_FILE,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )
    write_json(directory / VARIANT_FILE, variant.variant.to_json())
    write_json(directory / CONFIG_FILE, variant.config())
    return DeltaCheckpoint(baseline, directory)


def to_full(variant: DeltaCheckpoint, baseline: Checkpoint) -> DeltaCheckpoint:
    """Turn a variant that is stored as a delta into its full form, in its own directory.

    Raises:
        CheckpointError, DiskFull: see `write_full`.
    """
    full = write_full(variant, baseline, variant.path)
    (variant.path / DELTA_FILE).unlink()
    return full


def _shards(variant: DeltaCheckpoint, baseline: Checkpoint) -> dict[str, list[str]]:
    """Names of the variant's tensors by file name, empty shards left out."""
    left = set(variant.names())
    shards: dict[str, list[str]] = {}
    for path, names in baseline.shards.items():
        shards[path.name] = sorted(left if names is None else left & names)
        left -= set(shards[path.name])
    last = list(shards)[-1]
    shards[last] = sorted({*shards[last], *left})
    return {shard: names for shard, names in shards.items() if names}


def _write_shard(variant: DeltaCheckpoint, path: Path, names: list[str]) -> None:
    """Wide element types first, as the format's own library does: every tensor stays aligned."""
    ordered = sorted(names, key=lambda name: (-DTYPES[variant.info(name).dtype][1], name))
    with ContainerWriter(path, [(name, variant.info(name)) for name in ordered]) as writer:
        for name in ordered:
            writer.add(name, variant.read(name))

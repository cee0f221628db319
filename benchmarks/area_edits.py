"""Area edits: how fast variants are made, and in how much memory, on synthetic checkpoints.

Times include what publishing a variant costs (flushing to the device), on both sides of a comparison. The page cache
holds what was just written, so reading costs little on both sides, too. What writing costs depends on where the memory
comes from: a virtual machine's host takes back what is freed, a part every few seconds, and to get it again costs ten
times as much as to write into what is still there. The rates are therefore measured twice, see `PAUSES`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.rows import Row
from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.checkpoint.container import ContainerWriter, TensorInfo
from evpack.checkpoint.reader import CONFIG_FILE, INDEX_FILE, Checkpoint, contents_of
from evpack.edits import apply_edits
from evpack.edits.lowrank_svd import leading_basis
from evpack.errors import EvpackError
from evpack.faults import apply_fault
from evpack.publishing import fsync_tree

if TYPE_CHECKING:
    import torch

GB = 10**9
HIDDEN, INNER, VOCAB = 2048, 8192, 8192
BLOCK = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
SPEED_BLOCKS = 16
"""About 2 GB."""
MEMORY_BLOCKS = 132
"""About 16 GB."""
BATCH = (
    *("quant_rtn:8:128:ffn", "fp8_quant:e4m3fn:ffn", "magnitude_prune:0.1:ffn", "lowrank_svd:64:attn@layer=1"),
    *("quant_rtn:4:32:all", "fp8_quant:e5m2:all", "magnitude_prune:0.5:all", "lowrank_svd:32:attn@layer=1"),
)
"""Eight variants as the reference suites make them; decompositions of one block only, they would hide all else."""
SINGLE = ("quant_rtn:4:128:all", "fp8_quant:e4m3fn:all", "magnitude_prune:0.5:all")
ROUNDS = 3
"""Medians of so many; reference and measured alternate."""
PAUSES = {"memory long free": 10.0, "memory just freed": 0.0}
"""Seconds that the machine idles before each run of an edit and of the copy beside it. Without a pause both begin in
the memory of what was deleted the moment before; a copy ends before it is taken back, an edit does not."""
_PIECE = 8 << 20


class Counting(Checkpoint):
    """Counts how often each tensor is read from disk."""

    reads: Counter[str]

    def read(self, name: str) -> torch.Tensor:
        """See `Checkpoint.read`."""
        self.reads[name] += 1
        return super().read(name)


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        root = Path(folder)
        source = synthetic(root / "two", SPEED_BLOCKS)
        checkpoint = Counting(source, contents_of(Checkpoint(source)).tensors)
        checkpoint.reads = Counter()
        rows = [*_speed(root, checkpoint), *_batch(root, checkpoint), _injection(root, checkpoint)]
    return [*rows, *_memory(), *_lowrank()]


def synthetic(root: Path, blocks: int) -> Path:
    """Write a sharded bf16 checkpoint of random weights, one shard for every eight blocks."""
    import torch

    root.mkdir()
    generator = torch.Generator().manual_seed(1)
    matrices = {shape: torch.empty(shape).normal_(std=0.02, generator=generator).bfloat16() for shape in BLOCK.values()}
    embeddings = torch.empty(VOCAB, HIDDEN).normal_(std=0.02, generator=generator).bfloat16()
    weight_map = {}
    for first in range(0, blocks, 8):
        shard = f"model-{first // 8:05d}.safetensors"
        tensors = {
            f"model.layers.{block}.{name}.weight": matrices[shape]
            for block in range(first, min(blocks, first + 8))
            for name, shape in BLOCK.items()
        }
        if first == 0:
            tensors["model.embed_tokens.weight"] = embeddings
        infos = [(n, TensorInfo("BF16", tuple(t.shape), t.numel() * t.element_size())) for n, t in tensors.items()]
        with ContainerWriter(root / shard, infos) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
        weight_map |= dict.fromkeys(tensors, shard)
    (root / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (root / CONFIG_FILE).write_text(json.dumps({"model_type": "llama", "num_hidden_layers": blocks}))
    fsync_tree(root)
    return root


def _speed(root: Path, checkpoint: Checkpoint) -> Iterator[Row]:
    """Each edit beside a plain copy of the bytes it reads and writes, in turns."""
    size = sum(checkpoint.info(name).nbytes for name in checkpoint.names() if "_proj" in name)
    for (memory, pause), spec in product(PAUSES.items(), SINGLE):
        edits, copies = [], []
        for _ in range(ROUNDS):
            copies.append(_seconds(root, lambda out: _copy(checkpoint, size, out), pause))
            edits.append(_seconds(root, lambda out, spec=spec: _edit(checkpoint, (spec,), out), pause))
        yield Row(
            f"{spec}, {size / GB:.2f} GB of bf16, {memory}",
            size / median(edits) / 1e6,
            "MB/s",
            0.4,
            "at least",
            reference=size / median(copies) / 1e6,
            reference_name="plain streamed copy of the same bytes",
        )


def _batch(root: Path, checkpoint: Counting) -> Iterator[Row]:
    singly = sum(_seconds(root, lambda out, spec=spec: _edit(checkpoint, (spec,), out)) for spec in BATCH)
    checkpoint.reads.clear()
    together = _seconds(root, lambda out: _edit(checkpoint, BATCH, out))
    yield Row("batch of eight variants", together, "s", 0.85, "at most", singly, "the eight one after the other")
    yield Row("reads of any tensor in that batch", max(checkpoint.reads.values()), "", 1, "at most")


def _injection(root: Path, checkpoint: Checkpoint) -> Row:
    out = root / "fault"
    out.mkdir()
    (name,) = apply_fault(checkpoint, "nan_injection", out, scenario="fault").variant.changed
    written = sum(path.stat().st_size for path in out.iterdir())
    extra = written - checkpoint.info(name).nbytes
    return Row("bytes of a one-tensor fault beyond the tensor", extra / 1000, "kB", 64, "at most", note=name)


def _memory() -> Iterator[Row]:
    """Peak memory of a process of its own; the kernel counts what stays resident, caches of the device not."""
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        source = synthetic(Path(folder) / "sixteen", MEMORY_BLOCKS)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        largest = max(rows * columns for rows, columns in (*BLOCK.values(), (VOCAB, HIDDEN))) * 2
        for spec in ("quant_rtn:4:128:all", "magnitude_prune:0.5:all"):
            script = "import sys; from benchmarks.area_edits import peak; peak(*sys.argv[1:])"
            command = [sys.executable, "-c", script, str(source), spec]
            peak_bytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            yield Row(
                f"peak memory, {spec}, {size / GB:.1f} GB in {MEMORY_BLOCKS // 8 + 1} shards",
                peak_bytes / GB,
                "GB",
                1.5 + 2 * largest / GB,
                "at most",
                note=f"allowed 1.5 GB and twice the largest tensor ({largest / 1e6:.0f} MB)",
            )


def peak(source: str, spec: str) -> None:
    """In a process of its own: make a variant and print the peak resident memory in bytes."""
    import resource

    checkpoint = Checkpoint(Path(source))
    with tempfile.TemporaryDirectory(prefix="evpack-bench-", dir=Path(source).parent) as out:
        _edit(checkpoint, (spec,), Path(out))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _lowrank() -> Iterator[Row]:
    """A matrix with a falling spectrum, as weights have."""
    import torch

    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(4096, 14336, generator=generator) * torch.arange(1, 4097)[:, None].float() ** -0.3
    started = time.monotonic()
    exact = torch.linalg.svd(matrix, full_matrices=False)
    exact_seconds = time.monotonic() - started
    optimum = float(torch.linalg.vector_norm(exact.S[32:], dtype=torch.float64))
    started = time.monotonic()
    basis = leading_basis(matrix, 32)
    product = basis @ (basis.T @ matrix)
    seconds = time.monotonic() - started
    error = float(torch.linalg.vector_norm(matrix - product, dtype=torch.float64))  # fp32 sums lose half a percent
    yield Row("lowrank_svd rank 32 of 4096 x 14336", seconds, "s", 0.1, "at most", exact_seconds, "exact SVD")
    yield Row("its reconstruction error", error, "", 1.01, "at most", optimum, "the best of rank 32")


def _edit(checkpoint: Checkpoint, specs: tuple[str, ...], out: Path) -> None:
    edits = {f"s{i}": (resolve_edit(parse_edit_spec(spec), None), out / f"s{i}") for i, spec in enumerate(specs)}
    for _, directory in edits.values():
        directory.mkdir()
    for made in apply_edits(checkpoint, edits).values():
        if isinstance(made, EvpackError):
            raise made
    fsync_tree(out)


def _copy(checkpoint: Checkpoint, size: int, out: Path) -> None:
    """So many bytes of the shards, in pieces, into one file."""
    buffer = memoryview(bytearray(_PIECE))
    left = size
    with (out / "copy").open("xb", buffering=0) as target:
        for shard in checkpoint.shards:
            with shard.open("rb", buffering=0) as source:
                while left and (count := source.readinto(buffer[: min(left, _PIECE)])):
                    target.write(buffer[:count])
                    left -= count
    fsync_tree(out)


def _seconds(root: Path, work: Callable[[Path], None], pause: float = 0.0) -> float:
    with tempfile.TemporaryDirectory(prefix="out-", dir=root) as out:
        os.sync()
        time.sleep(pause)
        started = time.monotonic()
        work(Path(out))
        return time.monotonic() - started

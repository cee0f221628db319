"""``python -m evpack.checkpoint.pickle_worker SOURCE TARGET NAME...``: pickled weights as safetensors, file by file.

The unpickler admits tensors and plain containers only (``weights_only``): an object of any other kind ends the
conversion before it is made.
"""

from __future__ import annotations

import pickle  # for the name of an error; nothing is ever loaded with it
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evpack.checkpoint.container import read_header
from evpack.checkpoint.reader import INDEX_FILE, SINGLE_FILE
from evpack.files import WORLD_READABLE, write_json

if TYPE_CHECKING:
    import torch

_HEADS = ("lm_head.", "embed_out.", "output.")
"""Output layers. A pickle stores tied weights once under two names; on disk the tie is the absence of the head."""


def convert(source: Path, target: Path, names: Sequence[str]) -> None:
    """Write the tensors of a checkpoint's pickles into an existing directory, with an index when there are several.

    Raises:
        ValueError: when a pickle holds something else than named tensors.
    """
    if len(names) == 1:
        convert_file(source / names[0], target / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    total = 0
    for number, name in enumerate(names, 1):
        shard = target / f"model-{number:05d}-of-{len(names):05d}.safetensors"
        convert_file(source / name, shard)
        header = read_header(shard)
        weight_map |= dict.fromkeys(header, shard.name)
        total += sum(slot.info.nbytes for slot in header.values())
    write_json(target / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def convert_file(source: Path, target: Path) -> None:
    """Write the tensors of one pickled state dict as one safetensors file.

    Raises:
        ValueError: when the pickle holds something else than named tensors.
    """
    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1].rstrip('.')} in it is not a tensor" if found else "not a pickle of tensors"
        raise ValueError(f"{source.name}: {what}; nothing of it was run") from error
    for name, value in state.items() if isinstance(state, dict) else ((type(state).__name__, None),):
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{source.name}: {name!r} is not a named tensor")
    save_file(_untied(state), target, metadata={"format": "pt"})
    target.chmod(WORLD_READABLE)


def _untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor in memory of its own; of two names for one tensor, the head's is left out."""
    seen: set[tuple[object, ...]] = set()
    kept: dict[str, torch.Tensor] = {}
    for name in sorted(state, key=lambda name: (name.startswith(_HEADS), name)):
        tensor = state[name]
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        shared = tensor.numel() > 0 and place in seen
        seen.add(place)
        if shared and name.startswith(_HEADS):
            continue
        part = tensor.untyped_storage().nbytes() != tensor.nbytes
        kept[name] = tensor.clone().contiguous() if shared or part else tensor.contiguous()
    return kept


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except (ValueError, RuntimeError, EOFError) as problem:
        sys.exit(str(problem).splitlines()[0])

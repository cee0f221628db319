"""How a baseline enters a run directory: as links, as copies, or saved anew by transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from evpack.checkpoint.container import DTYPES
from evpack.checkpoint.loading import load_model, quiet
from evpack.checkpoint.profile import main_dtype
from evpack.checkpoint.reader import Checkpoint
from evpack.errors import CheckpointError, EvidenceError
from evpack.files import WORLD_READABLE, parse_json, write_json
from evpack.publishing import publishing

_GENERATION_FILE = "generation_config.json"
_SAVED_ANEW = ("config.json", "model.safetensors.index.json", _GENERATION_FILE)
_SAMPLING = ("temperature", "top_p")


def bring_in(
    source: Path, weights: Iterable[str], target: Path, mode: str, *, suffixes: tuple[str, ...], label: str
) -> None:
    """Publish a checkpoint as a baseline.

    Args:
        source: a directory with config, tokenizer and safetensors.
        weights: names of its weight files; other weights are left behind.
        target: the directory to publish.
        mode: ``snapshot_symlink`` links into the source, ``snapshot_copy`` copies, ``save_pretrained`` loads the model
            in the type of its largest tensor and saves it, which takes the memory of the model.
        suffixes: of the other files to take (`plan.sources.plain_suffixes`).
        label: part of the temporary name.

    Raises:
        CheckpointError: for save_pretrained, when the model does not load cleanly.
        AlreadyPublished: when the target exists.
        DiskFull: no room.
    """
    plain = [
        item
        for item in sorted(source.iterdir())
        if item.is_file() and item.suffix in suffixes and not item.name.startswith(".")
    ]
    with publishing(target, label) as part:
        if mode == "save_pretrained":
            _save_anew(source, part)
            files = [item for item in plain if item.name not in _SAVED_ANEW]
        else:
            files = [*plain, *(source / name for name in weights)]
        for item in files:
            if mode == "snapshot_symlink":
                (part / item.name).symlink_to(item.resolve())
            else:
                shutil.copyfile(item, part / item.name)


def _save_anew(source: Path, target: Path) -> None:
    import torch

    checkpoint = Checkpoint(source)
    model, loading = load_model(checkpoint, getattr(torch, DTYPES[main_dtype(checkpoint)][0]))
    if loading.unexplained:
        raise CheckpointError(
            f"{source} cannot be saved anew, it does not load cleanly: {loading.unexplained[0]}",
            "use baseline storage snapshot_symlink or snapshot_copy, or mend the checkpoint",
        )
    with quiet():
        model.save_pretrained(target)
    if (source / _GENERATION_FILE).is_file():
        write_json(target / _GENERATION_FILE, _greedy(source / _GENERATION_FILE))
    for path in target.iterdir():
        path.chmod(WORLD_READABLE)  # save_pretrained writes 0600, which a container's user could not read


def _greedy(path: Path) -> dict[str, object]:
    """A generation config without sampling parameters when it does not sample; transformers refuses such a pair."""
    try:
        config = parse_json(path.read_bytes(), str(path))
    except EvidenceError as error:
        raise CheckpointError(error.what, "fetch the checkpoint again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object", "fetch the checkpoint again")
    if not config.get("do_sample", False):
        config |= {name: None for name in _SAMPLING if name in config}
    return config

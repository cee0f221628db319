"""Disk space a campaign needs on the file system of its run directory (scheduling spec, section 9)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import BadInput
from evpack.files import GB
from evpack.settings import Settings

BASELINE_COPIES = {"snapshot_symlink": 0, "snapshot_copy": 1, "save_pretrained": 1}


@dataclass(frozen=True)
class ModelSpace:
    """What one model costs."""

    weights_gb: float
    arrives: Path | None
    """Directory below which its weights still have to be written (hub cache, conversion), None when they are there."""
    edits_gb: float
    """Variants made by edits that lie on disk at one time, at least: one, or all that one pass makes."""
    errors_gb: float
    """The same of error injections: one."""
    all_gb: float = 0.0
    """All variants together."""


def required_gb(path: Path, models: Iterable[ModelSpace], settings: Settings) -> float:
    """GB that must be free for a run directory.

    Sum over models of what arrives on the same file system + baseline copy + variants, and MIN_FREE_DISK_GB beside it.
    """
    models = tuple(models)
    copies = BASELINE_COPIES[settings.baseline_storage_mode]
    total = sum(model.weights_gb * (int(_on_device_of(path, model.arrives)) + copies) for model in models)
    return total + _variants_gb(models, settings) + settings.min_free_disk_gb


def _variants_gb(models: Iterable[ModelSpace], settings: Settings) -> float:
    """What variants take at one time: all where they are kept, else PACK_VARIANT_BUDGET_GB, else the least."""
    models = tuple(models)
    everything = sum(max(model.all_gb, model.edits_gb + model.errors_gb) for model in models)
    if settings.keep_variants:
        return everything
    if settings.variant_budget_gb is not None:
        return min(settings.variant_budget_gb, everything)
    return sum(model.edits_gb + model.errors_gb for model in models)


def variant_budget_gb(path: Path, models: Iterable[ModelSpace], settings: Settings) -> float | None:
    """Space that the variants of a campaign may take at one time, GB; None when there is room for all.

    PACK_VARIANT_BUDGET_GB, else what the disk has beyond everything else, never less than the preflight asks for.
    """
    models = tuple(models)
    if settings.keep_variants or settings.variant_budget_gb is not None:
        return settings.variant_budget_gb
    least = _variants_gb(models, settings)
    spare = free_gb(path) - (required_gb(path, models, settings) - least)
    if settings.skip_disk_preflight or spare >= sum(model.all_gb for model in models):
        return None
    return round(max(spare, least), 3)


def free_gb(path: Path) -> float:
    """Free GB of the file system where `path` is or will be."""
    return shutil.disk_usage(existing_parent(path)).free / GB


def existing_parent(path: Path) -> Path:
    """The path itself, or its nearest ancestor that this user can see."""
    while not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a directory may not be searched
        path = path.parent
    return path


def check_space(path: Path, models: Iterable[ModelSpace], settings: Settings) -> None:
    """Refuse a campaign that would fill the disk.

    Raises:
        BadInput: naming what is needed, what is free, and the settings that matter.
    """
    if settings.skip_disk_preflight:
        return
    models = tuple(models)
    need, free = required_gb(path, models, settings), free_gb(path)
    if free < need:
        raise BadInput(
            f"no disk space: {path} needs {need:.1f} GB free (of which MIN_FREE_DISK_GB={settings.min_free_disk_gb:g}),"
            f" {free:.1f} GB are",
            "make room, choose another OUTPUT_DIR, lower MIN_FREE_DISK_GB or set PACK_SKIP_DISK_PREFLIGHT=1",
        )
    for place in {model.arrives for model in models if model.arrives and not _on_device_of(path, model.arrives)}:
        need = sum(model.weights_gb for model in models if _on_device_of(place, model.arrives))
        if (free := free_gb(place)) < need:
            raise BadInput(
                f"no disk space: {need:.1f} GB of weights arrive in {place}, {free:.1f} GB are free",
                "make room there, choose another HF_HUB_CACHE or EVPACK_HOME, or set PACK_SKIP_DISK_PREFLIGHT=1",
            )


def _on_device_of(path: Path, other: Path | None) -> bool:
    """Whether `other` is or will be on the same file system."""
    return other is not None and existing_parent(other).stat().st_dev == existing_parent(path).stat().st_dev


def check_writable(path: Path) -> None:
    """Refuse a directory that cannot be made or written.

    Raises:
        BadInput: naming the path.
    """
    parent = existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f"run directory {path} cannot be written", "set PACK_OUTPUT_DIR to a writable directory")


def check_file(path: Path, option: str) -> None:
    """Refuse a file that could not be written once its content is there. Tries it out and leaves nothing behind.

    Raises:
        BadInput: naming the option and the path.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=existing_parent(path.parent)):
            pass
    except OSError as error:
        raise BadInput(f"{option} {path} cannot be written ({error.strerror})", "choose another place") from error

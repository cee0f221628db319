"""setup_baseline: bring a model into the run directory, measure it, and cut its evaluation windows."""

from __future__ import annotations

import shutil
from pathlib import Path

from evpack.checkpoint.profile import build_profile, write_profile
from evpack.checkpoint.reader import Checkpoint
from evpack.data.sources import source_from
from evpack.data.tokenise import load_tokenizer, token_ids, tokenizer_digest
from evpack.data.windows import WindowDemand, make_windows
from evpack.errors import BadInput, CheckpointError, MissingFile
from evpack.files import publishing
from evpack.guards.invariants import require_finite
from evpack.plan.model import ModelPlan
from evpack.plan.sources import content_digest, hub_snapshot
from evpack.rundir import ModelDir
from evpack.steps.base import StepContext, log
from evpack.steps.subject import model_of, set_aside

_TAKEN = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
"""Suffixes of what a checkpoint consists of: configuration, weights, tokenizer. Never pickles, never code."""


def setup_baseline(ctx: StepContext) -> list[Path]:
    """Publish ``models/baseline``, ``windows/`` and ``model_profile.json`` of the step's model.

    Returns:
        The three paths.

    Raises:
        BadInput: when the source or the text is not there or not usable.
        CheckpointError: when the checkpoint is damaged or not finite.
        DataError: when the text is too short.
    """
    model, place = model_of(ctx)
    for path in (place.baseline, place.windows, place.profile):
        if path.exists():
            set_aside(ctx, path)
    source = _source_directory(ctx, model)
    _bring_in(source, place.baseline, ctx.settings.baseline_storage_mode, str(ctx.attempt))
    checkpoint = Checkpoint(place.baseline)
    _check_pin(source, model)
    _cut_windows(ctx, place)
    require_finite(checkpoint)
    profile = build_profile(checkpoint, model_id=model.id, revision=model.source.revision)
    write_profile(place.profile, profile)
    log.info("baseline %s: %.3f GB in %d tensors", model.label, profile.weights_gb, len(profile.tensors))
    return [place.baseline, place.windows, place.profile]


def _source_directory(ctx: StepContext, model: ModelPlan) -> Path:
    """The local directory of a source: its path, or the snapshot of its pinned revision in the cache."""
    if model.source.kind == "hub":
        return hub_snapshot(model.id, model.source.revision or "", ctx.settings, ctx.home)
    path = Path(model.source.path or "")
    if not (model.source.path and path.is_dir()):
        raise MissingFile(f"model {model.id}: directory {model.source.path} does not exist", "mend the path")
    return path


def _check_pin(source: Path, model: ModelPlan) -> None:
    """A local source must still hold what it held when the campaign was planned."""
    pin = model.source.revision or ""
    if pin.startswith("sha256:") and pin != f"sha256:{content_digest(source)}":
        raise CheckpointError(
            f"model {model.id}: {source} has changed since the campaign was planned", "plan a new campaign"
        )


def _bring_in(source: Path, target: Path, mode: str, label: str) -> None:
    """Publish the checkpoint's files as links into the source (snapshot_symlink) or as copies (snapshot_copy)."""
    files = sorted(item for item in source.iterdir() if item.is_file() and item.suffix in _TAKEN)
    if not any(item.suffix == ".safetensors" for item in files):
        raise BadInput(f"{source} holds no safetensors weights", "convert the checkpoint to safetensors")
    with publishing(target, label) as part:
        for item in files:
            if mode == "snapshot_symlink":
                (part / item.name).symlink_to(item.resolve())
            elif mode == "snapshot_copy":
                shutil.copyfile(item, part / item.name)
            else:
                raise BadInput(
                    f"baseline storage mode {mode!r} is not supported", "use snapshot_symlink or snapshot_copy"
                )


def _cut_windows(ctx: StepContext, place: ModelDir) -> None:
    """Tokenise the text once; later steps read windows, never a text."""
    tokenizer = load_tokenizer(place.baseline)
    source = source_from(ctx.settings)
    windows = make_windows(
        token_ids(tokenizer, source.texts()),
        WindowDemand.from_settings(ctx.settings),
        provider=source.provider,
        tokenizer_digest=tokenizer_digest(tokenizer),
    )
    with publishing(place.windows, str(ctx.attempt)) as part:
        windows.save(part)
    log.info("%d windows of %d tokens, %d runs", len(windows.tokens), windows.seq_len, len(windows.runs))

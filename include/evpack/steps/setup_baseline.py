"""setup_baseline: bring a model into the run directory, measure it, and cut its evaluation windows."""

from __future__ import annotations

from pathlib import Path

from evpack.catalog.policy import Policy
from evpack.checkpoint.convert import converted
from evpack.checkpoint.profile import build_profile, write_profile
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.storage import bring_in
from evpack.data.sources import source_from
from evpack.data.tokenise import load_tokenizer, texts_of, token_ids, tokenizer_digest
from evpack.data.windows import WindowDemand, WindowSet, make_windows
from evpack.errors import CheckpointError, DataError, MissingFile
from evpack.evaluation.assess import least_of_text
from evpack.files import GB, publishing
from evpack.guards.invariants import require_finite
from evpack.plan.model import ModelPlan
from evpack.plan.sources import content_digest, converted_dir, fetch_snapshot, plain_suffixes, weight_files
from evpack.rundir import ModelDir
from evpack.steps.base import StepContext, log
from evpack.steps.subject import model_of, set_aside


def setup_baseline(ctx: StepContext) -> list[Path]:
    """Publish ``models/baseline``, ``windows/`` and ``model_profile.json`` of the step's model.

    Returns:
        The three paths.

    Raises:
        BadInput: when the source or the text is not there or not usable.
        CheckpointError: when the checkpoint is damaged or not finite.
        DataError: when the text is too short, or a run too small a part of it.
    """
    model, place = model_of(ctx)
    for path in (place.baseline, place.windows, place.profile):
        if path.exists():
            set_aside(ctx, path)
    source = _source(ctx, model)
    weights = weight_files(source, model.id, ctx.settings).names
    mode, suffixes = ctx.settings.baseline_storage_mode, plain_suffixes(ctx.settings)
    bring_in(source, weights, place.baseline, mode, suffixes=suffixes, label=str(ctx.attempt))
    checkpoint = Checkpoint(place.baseline)
    _cut_windows(ctx, place)
    require_finite(checkpoint)
    profile = build_profile(checkpoint, model_id=model.id, revision=model.source.revision)
    write_profile(place.profile, profile)
    log.info("baseline %s: %.3f GB in %d tensors", model.label, profile.weights_gb, len(profile.tensors))
    return [place.baseline, place.windows, place.profile]


def _source(ctx: StepContext, model: ModelPlan) -> Path:
    """The local directory with the model's safetensors: fetched or converted when it is not there yet."""
    revision = model.source.revision or ""
    if model.source.kind == "hub":
        path = fetch_snapshot(model.id, revision, ctx.settings, ctx.home)
        _check_size(ctx, model, path)
    else:
        path = Path(model.source.path or "")
        if not (model.source.path and path.exists()):
            raise MissingFile(f"model {model.id}: {model.source.path} does not exist", "mend the path")
        if revision != f"sha256:{content_digest(path)}":
            raise CheckpointError(
                f"model {model.id}: {path} has changed since the campaign was planned", "plan a new campaign"
            )
    if model.source.format == "safetensors":
        return path
    pickles = weight_files(path, model.id, ctx.settings).names if model.source.format == "pickle" else None
    return converted(path, converted_dir(ctx.home, model.id, revision), revision, pickles)


def _check_size(ctx: StepContext, model: ModelPlan, snapshot: Path) -> None:
    """Lanes, memory and disk were planned for a size; a snapshot of another is not the one that was planned."""
    names = weight_files(snapshot, model.id, ctx.settings).names
    size = round(sum((snapshot / name).stat().st_size for name in names) / GB, 3)
    if size != model.weights_gb:
        raise CheckpointError(
            f"model {model.id}: the weights in {snapshot} take {size} GB, the plan says {model.weights_gb}",
            "remove this snapshot from the cache, fetch it again and plan a new campaign",
        )


def _cut_windows(ctx: StepContext, place: ModelDir) -> None:
    """Tokenise the text once; later steps read windows, never a text."""
    tokenizer = load_tokenizer(place.baseline, code=ctx.settings.allow_remote_code)
    source = source_from(ctx.settings, ctx.home)
    windows = make_windows(
        token_ids(tokenizer, source.texts()),
        WindowDemand.from_settings(ctx.settings),
        provider=source.provider,
        tokenizer_digest=tokenizer_digest(tokenizer),
        decode=lambda tokens: texts_of(tokenizer, tokens),
    )
    _require_share(windows, Policy.parse(ctx.run.policy.read_bytes(), str(ctx.run.policy)))
    with publishing(place.windows, str(ctx.attempt)) as part:
        windows.save(part)
    shape = (len(windows.tokens), windows.seq_len, windows.stride, len(windows.runs))
    log.info("%d windows of %d tokens, %d apart, %d runs", *shape)


def _require_share(windows: WindowSet, policy: Policy) -> None:
    """Refuse a text of which a run is too small a part: no report could be accepted.

    Raises:
        DataError: how many tokens the text has and how many a run would have to use.
    """
    used = len(windows.runs[0].in_order()) * windows.predicted
    available = windows.text_tokens
    if used < (needed := least_of_text(available, policy)):
        raise DataError(
            f"the text has {available} tokens, of which a run must predict {needed}; it predicts {used}",
            "raise preview_windows and final_windows, or give less text",
        )

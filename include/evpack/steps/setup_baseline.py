"""setup_baseline: bring a model into the run directory, measure it, and cut its evaluation windows."""

from __future__ import annotations

import math
from pathlib import Path

from evpack.catalog.policy import Policy
from evpack.checkpoint.convert import converted
from evpack.checkpoint.loading import input_limits
from evpack.checkpoint.profile import build_profile, write_profile
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.storage import bring_in
from evpack.data.sources import source_from
from evpack.data.tokenise import load_tokenizer, texts_of, token_ids, tokenizer_digest
from evpack.data.windows import WindowDemand, WindowSet, make_windows
from evpack.errors import CheckpointError, DataError, MissingFile
from evpack.evaluation.assess import least_of_text
from evpack.files import GB
from evpack.guards.invariants import require_finite
from evpack.plan.model import ModelPlan
from evpack.plan.sources import content_digest, converted_dir, fetch_snapshot, plain_suffixes, weight_files
from evpack.publishing import publishing
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
        DataError: when the text is too short, or the model cannot be given its windows.
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
    _cut_windows(ctx, place, checkpoint)
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


def _cut_windows(ctx: StepContext, place: ModelDir, checkpoint: Checkpoint) -> None:
    """Tokenise the text once; later steps read windows, never a text."""
    tokenizer = load_tokenizer(place.baseline, code=ctx.settings.allow_remote_code)
    source, demand = source_from(ctx.settings, ctx.home), WindowDemand.from_settings(ctx.settings)
    windows = make_windows(
        token_ids(tokenizer, source.texts()),
        demand,
        provider=source.provider,
        tokenizer_digest=tokenizer_digest(tokenizer),
        decode=lambda tokens: texts_of(tokenizer, tokens),
        most=_most_windows(demand, Policy.parse(ctx.run.policy.read_bytes(), str(ctx.run.policy))),
    )
    _require_room(windows, checkpoint)
    with publishing(place.windows, str(ctx.attempt)) as part:
        windows.save(part)
    shape = (len(windows.tokens), windows.seq_len, windows.stride, windows.left_out, len(windows.runs))
    log.info("%d windows of %d tokens, %d apart, %d left out, %d runs", *shape)


def _most_windows(demand: WindowDemand, policy: Policy) -> int | None:
    """Windows of a text of which a run still predicts the share that the policy asks for; None where it asks for none.

    No report could be accepted on more of them.
    """
    used, share = demand.per_run * demand.predicted, policy.number("metrics.pm_ratio.min_token_fraction")
    most = math.ceil(used / (share * demand.stride)) if share else None
    while most and least_of_text(most * demand.stride, policy) > used:  # the share is a float
        most -= 1
    return most


def _require_room(windows: WindowSet, checkpoint: Checkpoint) -> None:
    """Refuse windows that the model cannot be given: an accelerator would break on a row that is not there.

    Raises:
        DataError: naming token or length, and the model's limit.
    """
    rows, positions = input_limits(checkpoint)
    if (largest := int(windows.tokens.max())) >= rows:
        raise DataError(
            f"the tokenizer gives token {largest}, the model's embedding has {rows} rows",
            "give the tokenizer that belongs to this checkpoint",
        )
    if positions is not None and windows.seq_len > positions:
        raise DataError(
            f"windows have {windows.seq_len} tokens, the model has {positions} positions", f"set seq_len to {positions}"
        )

"""A checkpoint, or a variant of one, as a transformers model, without writing it out in full.

transformers fills what it does not find with random weights and only warns. Here every key that was missing,
left over or of another shape comes back in a report, and what would be random is NaN.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evpack.checkpoint.reader import CheckpointLike
from evpack.checkpoint.spread import device_map
from evpack.errors import CheckpointError, is_out_of_memory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoadingReport:
    """What became of the keys. Names are the model's own, which may differ from those on disk."""

    missing: tuple[str, ...]
    """Parameters that no stored tensor fills: they hold NaN."""
    unexpected: tuple[str, ...]
    """Stored tensors that the architecture has no place for."""
    mismatched: tuple[str, ...]
    """Parameters whose stored tensor has another shape: they hold NaN."""
    unexplained: tuple[str, ...]
    """One line per fault of the subject, e.g. ``missing: lm_head.weight``; empty when the model is what was stored."""


class _Deferred:
    """Stands in a state dict for a tensor that is read when it is indexed, as a safetensors slice would."""

    def __init__(self, checkpoint: CheckpointLike, name: str) -> None:
        self._checkpoint = checkpoint
        self._name = name

    def __getitem__(self, _: object) -> torch.Tensor:
        return self._checkpoint.read(self._name)


def load_model(
    checkpoint: CheckpointLike,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    memory: Sequence[int] = (),
) -> tuple[Any, LoadingReport]:
    """Build the causal language model of a checkpoint or variant, in evaluation mode.

    Args:
        checkpoint: read tensor by tensor; peak memory is the model in `dtype` plus a few tensors.
        dtype: type of the weights in memory.
        device: a torch device name.
        memory: bytes that may be used of each device, in order; with more than one, the model is spread over them.

    Returns:
        The model and what became of the keys. The caller must not use a model with `unexplained` faults as a
        sound subject.

    Raises:
        CheckpointError: for an architecture that transformers does not know or tensors that it cannot convert.
        OutOfMemory: when it does not fit on the devices together.
    """
    model_class, config = _architecture(checkpoint)
    places = {"": device} if len(memory) < 2 else device_map(_on_paper(model_class, config), dtype, memory)
    with quiet():
        try:
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict={name: _Deferred(checkpoint, name) for name in checkpoint.names()},
                dtype=dtype,
                device_map=places,
                ignore_mismatched_sizes=True,  # reported, and fatal for the subject, instead of raised
                output_loading_info=True,
            )
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"transformers cannot load this {config.model_type} checkpoint: {error}") from error
    report = _report(checkpoint, info)
    _poison(model, report)
    return model, report


def _poison(model: Any, report: LoadingReport) -> None:
    """Turn what transformers filled with random numbers into NaN: no figure can come of it, and none by chance."""
    values = model.state_dict()
    for name in (*report.missing, *(line.partition(":")[0] for line in report.mismatched)):
        if name in values and values[name].is_floating_point():
            values[name].fill_(float("nan"))


def _architecture(checkpoint: CheckpointLike) -> tuple[Any, Any]:
    """Class and configuration of the causal language model; custom code is never looked for."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    values = checkpoint.config()
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json names the model type {model_type!r}, which transformers does not know",
            "use an architecture that transformers has; code that comes with a checkpoint is never run",
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # the values are not ours, and every family checks them with errors of its own
        raise CheckpointError(f"config.json is no valid {model_type} configuration: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(f"model type {model_type!r} has no causal language model in transformers")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config


def _on_paper(model_class: Any, config: Any) -> Any:
    """The model without weights."""
    import torch

    with torch.device("meta"):
        return model_class(config)


def input_limits(checkpoint: CheckpointLike) -> tuple[int, int | None]:
    """Rows of the model's token embedding, and how many positions it knows.

    None for positions that are computed (rotary ones, say): such a model may be scored beyond the length it was
    trained on. Where positions are looked up, none beyond the table's end can be.

    Raises:
        CheckpointError: for an architecture that transformers does not know.
    """
    import torch

    model_class, config = _architecture(checkpoint)
    model = _on_paper(model_class, config)
    embedding = model.get_input_embeddings()
    tokens = int(embedding.weight.shape[0])
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return tokens, None
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not embedding]
    tables += [len(buffer) for buffer in model.buffers() if buffer.dim() == 2]
    looked_up = any(rows - positions in (0, 2) for rows in tables)  # families after BART keep two rows for padding
    return tokens, positions if looked_up else None


def _report(checkpoint: CheckpointLike, info: dict[str, Any]) -> LoadingReport:
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(f"{name}: stored {list(a)}, model {list(b)}" for name, a, b in info["mismatched_keys"])
    strays = _strays_of_baseline(checkpoint, unexpected)
    return LoadingReport(
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        unexplained=(
            *(f"missing: {name}" for name in missing),
            *(f"mismatched: {line}" for line in mismatched),
            *(f"unexpected: {name}" for name in unexpected if name not in strays),
        ),
    )


def _strays_of_baseline(checkpoint: CheckpointLike, unexpected: Collection[str]) -> set[str]:
    """Left-over keys that say nothing about the subject: the baseline has them, and leaves them over itself.

    Under another configuration than the baseline's, what the baseline has a place for is told by its architecture,
    built without weights.
    """
    baseline = getattr(checkpoint, "baseline", checkpoint)
    stored = set(unexpected) & set(baseline.names())
    if not stored or checkpoint.config() == baseline.config():
        return stored
    model_class, config = _architecture(baseline)
    places = set(_on_paper(model_class, config).state_dict())
    prefix = model_class.base_model_prefix
    return {name for name in stored if name not in places and f"{prefix}.{name}" not in places}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of transformers on the console; our report and log replace both."""
    from transformers.utils import logging as transformers_logging

    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()

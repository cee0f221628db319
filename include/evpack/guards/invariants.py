"""Invariants guard: what must hold of the stored tensors whatever an edit does to their values.

Works on tensors as they stand on disk, one at a time; no model is needed. A tensor whose bytes are the
baseline's is not read again, so that a variant of one tensor costs one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evpack.checkpoint.parts import is_embedding, is_head, is_norm, is_tied
from evpack.checkpoint.reader import CheckpointLike, TensorRecord, tensor_records
from evpack.errors import CheckpointError
from evpack.guards.base import GuardResult, Violation, about

NAME = "invariants"

_HANDLED_CONFIG = frozenset({"tie_word_embeddings", "vocab_size"})
"""Judged together with the tensors they describe."""
_SILENT_CONFIG = frozenset({"transformers_version", "_name_or_path", "_attn_implementation_autoset"})
"""Say where a checkpoint came from, not what it is."""


@dataclass(frozen=True)
class InvariantsReference:
    """What the baseline looks like. Its tensors are finite: `require_finite` stands at the door of a campaign."""

    tensors: Mapping[str, TensorRecord]
    config: Mapping[str, Any]

    def result(self) -> GuardResult:
        """The `pre` entry: the baseline by itself."""
        return GuardResult(NAME, "pre", metrics=_Facts.of(self.tensors, self.config).metrics())


def prepare(baseline: CheckpointLike) -> InvariantsReference:
    """Take the reference. Reads no tensor whose digest is recorded already."""
    return InvariantsReference(tensor_records(baseline), baseline.config())


def require_finite(baseline: CheckpointLike) -> None:
    """Refuse a baseline with NaN or infinite elements: nothing can be compared with it. Reads every tensor once.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for name in baseline.names():
        if bad := count_non_finite(baseline, name):
            raise CheckpointError(
                f"baseline tensor {name!r} holds {bad} NaN or infinite elements", "give a healthy baseline"
            )


def validate(
    subject: CheckpointLike,
    reference: InvariantsReference,
    declaration: Mapping[str, Any] | None,
    *,
    unexplained_keys: Sequence[str] = (),
    load_error: str | None = None,
) -> GuardResult:
    """Compare a subject with its baseline: the `post` entry.

    A change outside the declaration is listed apart and decides nothing: a fault declares nothing, so it would
    make this guard fire on every injected fault and hide whether the fault's own detector does.

    Args:
        declaration: what the plan's edit means to change (``tensors``: names); None declares nothing.
        unexplained_keys: what loading the subject reported missing, unexpected or mismatched beyond the variant.
        load_error: why the subject could not be loaded at all.
    """
    before, now = reference.tensors, tensor_records(subject)
    common = sorted(now.keys() & before.keys())
    changed = [name for name in common if now[name].sha256 != before[name].sha256]
    added = sorted(now.keys() - before.keys())
    missing = sorted(before.keys() - now.keys())
    non_finite = {name: bad for name in [*changed, *added] if (bad := count_non_finite(subject, name))}
    config = subject.config()
    facts, facts_before = _Facts.of(now, config), _Facts.of(before, reference.config)

    findings = [
        *_finite_findings(non_finite),
        *_presence_findings(missing, added, facts, facts_before),
        *_shape_findings(before, now, common),
        *_vocabulary_findings(facts, facts_before),
        *_tying_findings(facts, facts_before),
        *_config_findings(config, reference.config),
        *_loading_findings(unexplained_keys, load_error),
    ]
    declared = set((declaration or {}).get("tensors", ()))
    undeclared = sorted({*changed, *added, *missing} - declared)
    apart = [about("undeclared_change", "warning", "changed outside the declaration", undeclared)] if undeclared else []
    return GuardResult(
        NAME,
        "post",
        tuple(findings),
        tuple(apart),
        metrics=facts.metrics()
        | {
            "non_finite_found": len(non_finite),
            "tensors_changed": len(changed),
            "tensors_added": len(added),
            "tensors_missing": len(missing),
            "undeclared_changes": len(undeclared),
            "declared": declaration is not None,
        },
        details={
            "weight_tying": {"baseline": facts_before.tying(), "subject": facts.tying()},
            "vocabulary": {"baseline": facts_before.vocabulary(), "subject": facts.vocabulary()},
        },
    )


def failed(error: BaseException) -> GuardResult:
    """The result of a guard that could not run: an error entry, never a pass."""
    text = f"{type(error).__name__}: {error}"
    return GuardResult(NAME, "post", (Violation("guard_error", "error", text),))


def report_block(pre: GuardResult, post: GuardResult) -> dict[str, Any]:
    """The `invariants` block of a report: pre, post, status, summary, details, failures[].

    `failures` holds what decided the status, `undeclared` what is listed apart.
    """
    severities = [violation.severity for violation in post.violations]
    return {
        "pre": pre.status,
        "post": post.status,
        "status": post.status,
        "summary": {
            "violations_found": len(severities),
            "fatal_violations": len(severities) - severities.count("warning"),
            "warning_violations": severities.count("warning"),
            **post.metrics,
        },
        "details": {**post.details, "entries": [pre.to_json(), post.to_json()]},
        "failures": [violation.to_json() for violation in post.violations],
        "undeclared": [violation.to_json() for violation in post.apart],
    }


def count_non_finite(source: CheckpointLike, name: str) -> int:
    """NaN and infinite elements of one stored tensor."""
    import torch

    tensor = source.read(name)
    if not tensor.is_floating_point():
        return 0
    if tensor.element_size() == 1:  # isfinite knows no 8-bit floats
        tensor = tensor.float()
    finite = torch.isfinite(tensor)
    return 0 if bool(finite.all()) else int(tensor.numel() - int(finite.sum()))


@dataclass(frozen=True)
class _Facts:
    """Structural facts that follow from stored tensors and the configuration."""

    tensors: int
    parameters: int
    norms: frozenset[str]
    embeddings: Mapping[str, int]
    """Rows of each embedding matrix, by tensor."""
    heads: frozenset[str]
    tied: bool
    config_tie: bool | None
    """What the configuration says; None when it says nothing."""
    config_vocab: int | None

    @classmethod
    def of(cls, tensors: Mapping[str, TensorRecord], config: Mapping[str, Any]) -> _Facts:
        tie, vocab = config.get("tie_word_embeddings"), config.get("vocab_size")
        return cls(
            tensors=len(tensors),
            parameters=sum(_numel(t.shape) for t in tensors.values()),
            norms=frozenset(filter(is_norm, tensors)),
            embeddings={n: t.shape[0] for n, t in tensors.items() if is_embedding(n) and len(t.shape) == 2},
            heads=frozenset(filter(is_head, tensors)),
            tied=is_tied(config, tensors),
            config_tie=tie if isinstance(tie, bool) else None,
            config_vocab=vocab if isinstance(vocab, int) else None,
        )

    def tying(self) -> dict[str, Any]:
        return {"tied": self.tied, "config": self.config_tie, "head_on_disk": bool(self.heads)}

    def vocabulary(self) -> dict[str, Any]:
        return {"config": self.config_vocab, "embedding_rows": dict(self.embeddings)}

    def metrics(self) -> dict[str, Any]:
        return {
            "checks_performed": len(_CHECKS),
            "tensor_count": self.tensors,
            "parameter_count": self.parameters,
            "norm_tensors": len(self.norms),
        }


_CHECKS = ("finite", "presence", "shape", "dtype", "norms", "vocabulary", "tying", "config", "loading", "declaration")


def _numel(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _finite_findings(non_finite: Mapping[str, int]) -> list[Violation]:
    if not non_finite:
        return []
    worst = max(non_finite, key=lambda name: non_finite[name])
    text = f"{sum(non_finite.values())} NaN or infinite elements, most in {worst} ({non_finite[worst]})"
    return [about("non_finite_tensor", "fatal", text, sorted(non_finite))]


def _presence_findings(missing: list[str], added: list[str], now: _Facts, before: _Facts) -> list[Violation]:
    """Lost tensors are fatal. A head that went or came together with its tying is the tying check's business."""
    findings = []
    head_went = now.tied and not before.tied
    head_came = before.tied and not now.tied
    lost = [n for n in missing if not (head_went and n in before.heads)]
    norms = [n for n in lost if n in before.norms]
    others = [n for n in lost if n not in before.norms]
    extra = [n for n in added if not (head_came and n in now.heads)]
    if norms:
        findings.append(about("layer_norm_missing", "fatal", "normalisation tensors are missing", norms))
    if others:
        findings.append(about("missing_tensor", "fatal", "tensors of the baseline are missing", others))
    if extra:
        findings.append(about("extra_tensor", "warning", "tensors that the baseline does not have", extra))
    return findings


def _shape_findings(
    before: Mapping[str, TensorRecord], now: Mapping[str, TensorRecord], common: Sequence[str]
) -> list[Violation]:
    findings = []
    rows = [n for n in common if is_embedding(n) or is_head(n)]
    shapes = [n for n in common if before[n].shape != now[n].shape and n not in rows]
    dtypes = [n for n in common if before[n].dtype != now[n].dtype]
    vocabulary = [n for n in rows if before[n].shape != now[n].shape]
    if vocabulary:
        first = vocabulary[0]
        text = f"{first}: {list(before[first].shape)} became {list(now[first].shape)}"
        findings.append(about("tokenizer_mismatch", "fatal", text, vocabulary))
    if shapes:
        first = shapes[0]
        text = f"{first}: {list(before[first].shape)} became {list(now[first].shape)}"
        findings.append(about("shape_changed", "fatal", text, shapes))
    if dtypes:
        text = f"{dtypes[0]}: {before[dtypes[0]].dtype} became {now[dtypes[0]].dtype}"
        findings.append(about("dtype_changed", "warning", text, dtypes))
    return findings


def _vocabulary_findings(now: _Facts, before: _Facts) -> list[Violation]:
    findings = []
    if now.config_vocab != before.config_vocab:
        text = f"config vocab_size {before.config_vocab} became {now.config_vocab}"
        findings.append(Violation("tokenizer_mismatch", "fatal", text))
    short = [n for n, rows in now.embeddings.items() if now.config_vocab is not None and rows < now.config_vocab]
    if short:
        text = f"{short[0]} has {now.embeddings[short[0]]} rows, config vocab_size is {now.config_vocab}"
        findings.append(about("tokenizer_mismatch", "fatal", text, short))
    return findings


def _tying_findings(now: _Facts, before: _Facts) -> list[Violation]:
    findings = []
    if now.tying() != before.tying():
        text = f"{before.tying()} became {now.tying()}"
        findings.append(Violation("weight_tying_changed", "warning", text))
    if before.tied and not now.tied and not now.heads:
        findings.append(Violation("head_missing", "fatal", "untied by the configuration, but no head is stored"))
    return findings


def _config_findings(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Violation]:
    ignored = _HANDLED_CONFIG | _SILENT_CONFIG
    keys = sorted(k for k in {*now, *before} - ignored if now.get(k) != before.get(k))
    return [Violation("config_changed", "warning", "configuration differs in " + ", ".join(keys))] if keys else []


def _loading_findings(unexplained: Sequence[str], load_error: str | None) -> list[Violation]:
    findings = []
    if load_error is not None:
        findings.append(Violation("load_failed", "fatal", load_error))
    if unexplained:
        text = "loading reported keys that the variant does not explain"
        findings.append(about("unexplained_keys", "fatal", text, list(unexplained)))
    return findings

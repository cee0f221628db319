"""The invariants guard's judgement: two checkpoints on paper and what was observed of the subject in, findings out.

Pure. What cannot be told from types, shapes, digests and configuration is observed by `guards.invariants` and enters
as findings: elements that are not finite, and what loading the subject said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evpack.checkpoint.contents import Contents, TensorRecord
from evpack.checkpoint.parts import is_embedding, is_head, is_norm, is_tied
from evpack.guards.base import GUARD_ERROR, GuardResult, Violation, about

NAME = "invariants"
NON_FINITE, UNEXPLAINED, LOAD_FAILED = "non_finite_tensor", "unexplained_keys", "load_failed"
OBSERVED = frozenset({NON_FINITE, UNEXPLAINED, LOAD_FAILED})
"""Types of the findings that need tensors or a model."""

_HANDLED_CONFIG = frozenset({"tie_word_embeddings", "vocab_size"})
"""Judged together with the tensors they describe."""
_SILENT_CONFIG = frozenset({"transformers_version", "_name_or_path", "_attn_implementation_autoset"})
"""Say where a checkpoint came from, not what it is."""


def reference_result(baseline: Contents) -> GuardResult:
    """The `pre` entry: the baseline by itself."""
    return GuardResult(NAME, "pre", metrics=_Facts.of(baseline.tensors, baseline.configuration).metrics())


def assess(
    subject: Contents, baseline: Contents, declaration: Mapping[str, Any] | None, observed: Sequence[Violation] = ()
) -> GuardResult:
    """Compare a subject with its baseline: the `post` entry.

    A change outside the declaration is listed apart and decides nothing: a fault declares nothing, so it would
    make this guard fire on every injected fault and hide whether the fault's own detector does.

    Args:
        declaration: what the plan's edit means to change (``tensors``: names); None declares nothing.
        observed: findings of the types `OBSERVED`, in their order.
    """
    before, now = baseline.tensors, subject.tensors
    common, added = sorted(now.keys() & before.keys()), sorted(now.keys() - before.keys())
    missing = sorted(before.keys() - now.keys())
    facts = _Facts.of(now, subject.configuration)
    facts_before = _Facts.of(before, baseline.configuration)
    findings = [
        *observed,
        *_presence_findings(missing, added, facts, facts_before),
        *_shape_findings(before, now, common),
        *_vocabulary_findings(facts, facts_before),
        *_tying_findings(facts, facts_before),
        *_config_findings(subject.configuration, baseline.configuration),
    ]
    changed = [name for name in common if now[name].sha256 != before[name].sha256]
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
            "non_finite_found": sum(finding.count for finding in observed if finding.type == NON_FINITE),
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


def observed_in(block: Mapping[str, Any]) -> list[Violation]:
    """The findings of a report's block that need tensors or a model.

    Raises:
        KeyError, TypeError: when the block is malformed.
    """
    return [
        Violation(f["type"], "fatal", f["message"], tuple(f["tensors"]), f["count"])
        for f in block["failures"]
        if f["type"] in OBSERVED
    ]


def failed(why: str) -> GuardResult:
    """The result of a guard that could not run: an error entry, never a pass."""
    return GuardResult(NAME, "post", (Violation(GUARD_ERROR, "error", why),))


def finite_findings(non_finite: Mapping[str, int]) -> list[Violation]:
    """The finding about NaN and infinite elements, counted by tensor."""
    if not non_finite:
        return []
    worst = max(non_finite, key=lambda name: non_finite[name])
    text = f"{sum(non_finite.values())} NaN or infinite elements, most in {worst} ({non_finite[worst]})"
    return [about(NON_FINITE, "fatal", text, sorted(non_finite))]


def loading_findings(unexplained: Sequence[str], load_error: str | None) -> list[Violation]:
    """Findings about keys that nothing explains and about a subject that could not be loaded."""
    findings = []
    if load_error is not None:
        findings.append(Violation(LOAD_FAILED, "fatal", load_error))
    if unexplained:
        text = "loading reported keys that the variant does not explain"
        findings.append(about(UNEXPLAINED, "fatal", text, list(unexplained)))
    return findings


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
    reshaped = [n for n in common if before[n].shape != now[n].shape]
    vocabulary = [n for n in reshaped if is_embedding(n) or is_head(n)]
    others = [n for n in reshaped if n not in vocabulary]
    for check, names in (("tokenizer_mismatch", vocabulary), ("shape_changed", others)):
        if names:
            first = names[0]
            text = f"{first}: {list(before[first].shape)} became {list(now[first].shape)}"
            findings.append(about(check, "fatal", text, names))
    dtypes = [n for n in common if before[n].dtype != now[n].dtype]
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

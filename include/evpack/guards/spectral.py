"""Spectral guard: each weight matrix against the same matrix of the baseline.

Pure: two sets of records and a policy in, findings out. The statistic is ``r = ln(sigma_subject / sigma_baseline)``
of each matrix. It is deterministic, so there is no testing; the reference's z-scores and its selection over
families are reported beside it and decide nothing.

A matrix is capped when ``|r|`` exceeds the policy's ratio cap or its stable rank drops; more caps than the tier
allows fail. Fatal by itself, whatever the caps: ``|r|`` above the fatal ratio, a collapsed stable rank, collapsed
rows or columns, a matrix that is missing, of another shape or not finite.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evpack.catalog.policy import Policy
from evpack.errors import EvidenceError
from evpack.files import digest_json
from evpack.guards.base import GuardResult, Violation, about
from evpack.guards.spectral_records import MatrixRecord, SpectralRecords, family
from evpack.guards.spectral_zscores import reported_figures

NAME = "spectral"
_SMALLEST = 1e-12
"""Stands for sigma of a matrix of zeros, so that its ratio is huge and finite."""
_TOP = 5
"""Matrices shown in a report."""


@dataclass(frozen=True)
class _Compared:
    """One changed matrix beside its baseline."""

    name: str
    now: MatrixRecord
    before: MatrixRecord

    @cached_property
    def ratio(self) -> float | None:
        """Ln of subject over baseline sigma; None when the subject's is not finite."""
        if self.now.sigma is None or self.before.sigma is None:
            return None
        return math.log(max(self.now.sigma, _SMALLEST) / max(self.before.sigma, _SMALLEST))

    @cached_property
    def rank_ratio(self) -> float | None:
        """Stable rank over the baseline's; None where one of them has none."""
        now, before = self.now.stable_rank, self.before.stable_rank
        return None if now is None or not before else now / before

    @property
    def collapsed(self) -> float:
        """The larger of the collapsed shares of rows and columns."""
        return max(self.now.rows.fraction, self.now.columns.fraction)


def assess(
    subject: SpectralRecords, baseline: SpectralRecords, policy: Policy, *, declared_rank: frozenset[str] = frozenset()
) -> tuple[GuardResult, dict[str, Any]]:
    """The guard's result and its block of a report (without the places of the records).

    Args:
        declared_rank: tensors whose rank a clean edit of the plan means to lower: a drop of their stable rank is
            what was asked for. Nothing else is excused.

    Raises:
        EvidenceError: when the two were measured in different ways.
    """
    if subject.contract != baseline.contract:
        raise EvidenceError(
            f"sigma was found in two ways: {subject.contract} and {baseline.contract}", "redo calibrate"
        )
    pairs = [
        _Compared(name, now, baseline.matrices[name])
        for name, now in sorted(subject.matrices.items())
        if name in baseline.matrices and now.shape == baseline.matrices[name].shape
    ]
    capped = {pair.name: reasons for pair in pairs if (reasons := list(_caps(pair, policy, declared_rank)))}
    max_caps = int(policy.number("spectral.max_caps"))
    fatal = [*_structure(subject, baseline), *_fatal(pairs, policy, declared_rank)]
    if len(capped) > max_caps:
        text = f"{len(capped)} matrices capped, at most {max_caps} allowed"
        fatal.append(about("max_caps_exceeded", "fatal", text, sorted(capped)))
    findings = fatal + [_budgeted(kind, pairs, capped) for kind in sorted({k for ks in capped.values() for k in ks})]
    result = GuardResult(NAME, "post", tuple(findings), metrics={"caps_applied": len(capped)})
    return result, _block(result, pairs, capped, fatal, subject, baseline, policy)


def _structure(subject: SpectralRecords, baseline: SpectralRecords) -> Iterator[Violation]:
    if subject.missing:
        yield about("matrix_missing", "fatal", "matrices of the baseline are missing", sorted(subject.missing))
    shapes = {n: (baseline.matrices[n].shape, m.shape) for n, m in subject.matrices.items() if n in baseline.matrices}
    if changed := sorted(name for name, (before, now) in shapes.items() if before != now):
        before, now = shapes[changed[0]]
        yield about("shape_changed", "fatal", f"{changed[0]}: {list(before)} became {list(now)}", changed)
    bad = sorted(name for name, record in subject.matrices.items() if record.sigma is None or record.frobenius is None)
    if bad:
        yield about("non_finite_matrix", "fatal", "matrices with NaN or infinite elements have no sigma", bad)


def _fatal(pairs: list[_Compared], policy: Policy, declared_rank: frozenset[str]) -> Iterator[Violation]:
    limit = policy.number("spectral.ratio_fatal")
    rank_limit = policy.number("spectral.stable_rank.fatal_ratio")
    share = policy.number("spectral.norm_collapse.fatal_fraction")
    largest = policy.thresholds["spectral.max_spectral_norm"].value
    checks = {
        "sigma_ratio_fatal": [p for p in pairs if p.ratio is not None and abs(p.ratio) > limit],
        "degeneracy_stable_rank_collapse": [p for p in _not_declared(pairs, declared_rank) if _drops(p, rank_limit)],
        "degeneracy_norm_collapse": [p for p in pairs if p.collapsed >= share],
        "max_spectral_norm": [p for p in pairs if largest is not None and (p.now.sigma or 0.0) > float(largest)],  # type: ignore[arg-type]
    }
    for kind, found in checks.items():
        if found:
            yield about(kind, "fatal", _worst(found), [p.name for p in found])


def _caps(pair: _Compared, policy: Policy, declared_rank: frozenset[str]) -> Iterator[str]:
    if pair.ratio is not None and abs(pair.ratio) > policy.number("spectral.ratio_cap"):
        yield "sigma_ratio_cap"
    if _not_declared([pair], declared_rank) and _drops(pair, policy.number("spectral.stable_rank.warn_ratio")):
        yield "degeneracy_stable_rank_drop"


def _not_declared(pairs: list[_Compared], declared_rank: frozenset[str]) -> list[_Compared]:
    return [pair for pair in pairs if pair.name.partition("[")[0] not in declared_rank]


def _drops(pair: _Compared, limit: float) -> bool:
    return pair.rank_ratio is not None and pair.rank_ratio < limit


def _budgeted(kind: str, pairs: list[_Compared], capped: Mapping[str, list[str]]) -> Violation:
    found = [pair for pair in pairs if kind in capped.get(pair.name, ())]
    return about(kind, "warning", _worst(found), [pair.name for pair in found])


def _worst(pairs: list[_Compared]) -> str:
    pair = max(pairs, key=lambda p: abs(p.ratio or 0.0))
    ratio, rank = ("none" if value is None else f"{value:.4g}" for value in (pair.ratio, pair.rank_ratio))
    return f"{pair.name}: ln sigma ratio {ratio}, stable rank ratio {rank}, collapsed share {pair.collapsed:.3g}"


def _block(
    result: GuardResult,
    pairs: list[_Compared],
    capped: Mapping[str, list[str]],
    fatal: list[Violation],
    subject: SpectralRecords,
    baseline: SpectralRecords,
    policy: Policy,
) -> dict[str, Any]:
    now = baseline.matrices | subject.matrices
    sigmas = [m.sigma for m in now.values() if m.sigma is not None]
    before = [m.sigma for m in baseline.matrices.values() if m.sigma is not None]
    ratios = [math.exp(p.ratio) for p in pairs if p.ratio is not None]
    everything = ratios + [1.0] * (len(baseline.matrices) - len(pairs))
    largest = sorted(pairs, key=lambda p: -abs(p.ratio or 0.0))[:_TOP]
    max_caps = int(policy.number("spectral.max_caps"))
    return {
        "status": result.status,
        "action": result.action,
        "tier": policy.tier,
        "caps_applied": len(capped),
        "caps_exceeded": len(capped) > max_caps,
        "caps_applied_by_family": _by_family(capped),
        "fatal_violations": len(fatal),
        "failures": [violation.to_json() for violation in result.violations],
        "summary": {
            "status": "stable" if result.status == "pass" else "capped" if result.passed else "unstable",
            "modules_checked": len(baseline.matrices),
            "modules_changed": len(subject.matrices),
            "modules_without_reference": sum(name not in baseline.matrices for name in subject.matrices),
            "max_caps": max_caps,
            "max_abs_log_ratio": max((abs(p.ratio) for p in pairs if p.ratio is not None), default=0.0),
            "max_sigma_ratio": max(everything, default=None),
            "median_sigma_ratio": statistics.median(everything) if everything else None,
            "max_spectral_norm": max(sigmas, default=None),
            "mean_spectral_norm": statistics.fmean(sigmas) if sigmas else None,
            "baseline_max_spectral_norm": max(before, default=None),
            "baseline_mean_spectral_norm": statistics.fmean(before) if before else None,
            "smallest_stable_rank_ratio": min((p.rank_ratio for p in pairs if p.rank_ratio is not None), default=1.0),
            "stability_score": 1.0 - min(len(result.violations) / max(len(baseline.matrices), 1), 1.0),
            "sigma_quantile": policy.number("spectral.sigma_quantile"),
            "deadband": policy.number("spectral.deadband"),
        },
        "top_violations": [_shown(pair) for pair in largest],
        "measurement_contract": subject.contract,
        "measurement_contract_hash": digest_json(subject.contract)[:16],
        "measurement_contract_match": True,
        "reported": reported_figures(subject, baseline, policy),
    }


def _shown(pair: _Compared) -> dict[str, Any]:
    return {
        "module": pair.name,
        "family": family(pair.name),
        "log_ratio": pair.ratio,
        "stable_rank_ratio": pair.rank_ratio,
        "collapsed_rows": pair.now.rows.collapsed,
        "collapsed_columns": pair.now.columns.collapsed,
    }


def _by_family(capped: Mapping[str, list[str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in capped:
        counts[family(name)] = counts.get(family(name), 0) + 1
    return counts

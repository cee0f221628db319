"""The reference's z-scores of sigma within a family: reported beside the ratios, deciding nothing.

They measure where a matrix stands among its like, not what an edit did to it: a healthy model has z-scores up to 3.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from evpack.catalog.policy import Policy
from evpack.evaluation.tail import linear_quantile
from evpack.guards.spectral_records import SpectralRecords, family

_SHOWN = 3


def reported_figures(subject: SpectralRecords, baseline: SpectralRecords, policy: Policy) -> dict[str, Any]:
    """families, family_caps, family_z_quantiles, top_z_scores and multiple_testing, as the reference names them."""
    spread = family_spread(baseline)
    scores = z_scores(baseline, subject)
    caps = {label: kappa(policy, label) for label in sorted(spread)}
    return {
        "gates": False,
        "families": {label: {"mean": mean, "std": std} for label, (mean, std) in sorted(spread.items())},
        "family_caps": {label: {"kappa": value} for label, value in caps.items()},
        "family_z_quantiles": {label: _quantiles(found) for label, found in sorted(scores.items())},
        "top_z_scores": {label: _top(found) for label, found in sorted(scores.items())},
        "multiple_testing": _selection(scores, caps, policy),
    }


def family_spread(records: SpectralRecords) -> dict[str, tuple[float, float]]:
    """Mean and population standard deviation of sigma by family."""
    found: dict[str, list[float]] = {}
    for name, matrix in records.matrices.items():
        if matrix.sigma is not None:
            found.setdefault(family(name), []).append(matrix.sigma)
    return {label: (statistics.fmean(sigmas), statistics.pstdev(sigmas)) for label, sigmas in found.items()}


def z_scores(baseline: SpectralRecords, subject: SpectralRecords | None = None) -> dict[str, dict[str, float]]:
    """Z of each matrix by family and name, of the subject or else of the baseline, in the baseline's spread."""
    spread = family_spread(baseline)
    scores: dict[str, dict[str, float]] = {}
    for name, matrix in (baseline.matrices | (subject.matrices if subject else {})).items():
        mean, std = spread.get(family(name), (0.0, 0.0))
        if std > 0 and matrix.sigma is not None:
            scores.setdefault(family(name), {})[name] = (matrix.sigma - mean) / std
    return scores


def kappa(policy: Policy, label: str) -> float:
    """The reference's cap on z of a family; experts and routers have that of feed-forward weights."""
    key = f"spectral.family_caps.{label}.kappa"
    return policy.number(key if key in policy.thresholds else "spectral.family_caps.ffn.kappa")


def _quantiles(scores: Mapping[str, float]) -> dict[str, float]:
    values = sorted(map(abs, scores.values()))
    return {
        "q95": linear_quantile(values, 0.95),
        "q99": linear_quantile(values, 0.99),
        "max": values[-1],
        "count": len(values),
    }


def _top(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    first = sorted(scores.items(), key=lambda item: (-abs(item[1]), item[0]))[:_SHOWN]
    return [{"module": name, "z": z} for name, z in first]


def _selection(scores: Mapping[str, Mapping[str, float]], caps: Mapping[str, float], policy: Policy) -> dict[str, Any]:
    """Benjamini and Hochberg (1995), or Bonferroni, over the families with a matrix beyond its cap."""
    beyond = {
        label: max(abs(z) for z in found.values())
        for label, found in scores.items()
        if any(abs(z) > caps[label] for z in found.values())
    }
    p_values = {label: math.erfc(z / math.sqrt(2)) for label, z in beyond.items()}
    alpha = policy.number("spectral.multiple_testing.alpha")
    method = policy.text("spectral.multiple_testing.method")
    m = max(int(policy.number("spectral.multiple_testing.m")), len(p_values), 1)
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    if method == "bh":
        last = max((rank for rank, (_, p) in enumerate(ordered, start=1) if p <= alpha * rank / m), default=0)
        selected = [label for label, _ in ordered[:last]]
    else:
        selected = [label for label, p in ordered if p <= alpha / m]
    return {
        "method": method,
        "alpha": alpha,
        "m": m,
        "families_tested": sorted(p_values),
        "families_selected": sorted(selected),
        "family_pvalues": p_values,
        "family_max_abs_z": beyond,
    }

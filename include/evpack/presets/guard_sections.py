"""What a preset says about the guards: the thresholds in force, and where the baseline itself stands.

The thresholds are the policy's. Calibration loosens none: spectral ratios do not depend on windows, and the baseline's
own edge risks differ far more from windows to windows than a subject's do from them on the same ones (docs/guards.md).
Only the caps on z-scores, which decide nothing, follow the baseline's own spread.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from evpack.catalog.edit_spec import EditType
from evpack.catalog.policy import Policy
from evpack.guards import rmt, spectral, variance
from evpack.guards.spectral_records import SpectralRecords
from evpack.guards.spectral_zscores import kappa, z_scores

_MARGIN = {"conservative": 0.10}
_DEFAULT_MARGIN = 0.05
"""Added to a cap that the baseline needs (the reference's margins)."""


def guard_sections(order: Sequence[str], policy: Policy, matrices: SpectralRecords | None) -> dict[str, Any]:
    """A section per guard of the order that has thresholds.

    Args:
        matrices: the baseline's, where the spectral guard is in the order.
    """
    sections: dict[str, Any] = {}
    if spectral.NAME in order and matrices is not None:
        keys = ("ratio_cap", "ratio_fatal", "sigma_quantile", "deadband", "max_caps")
        caps = {
            label: {"kappa": cap, "policy_kappa": kappa(policy, label)}
            for label, cap in family_caps(matrices, policy).items()
        }
        sections[spectral.NAME] = _values(policy, spectral.NAME, keys) | {"family_caps": caps}
    if rmt.NAME in order:
        limits = ("epsilon", "epsilon_rms", "epsilon_lower_rank", "epsilon_default", "margin", "deadband")
        sections[rmt.NAME] = _values(policy, rmt.NAME, limits)
    if variance.NAME in order:
        keys = ("deadband", "min_effect_lognll", "min_gain", "min_rel_gain", "monitor_only")
        sections[variance.NAME] = _values(policy, variance.NAME, keys)
    return sections


def edit_variant(preset: Mapping[str, Any], edit_type: EditType) -> dict[str, Any]:
    """The preset as it is in force for a model's clean edits of one type.

    A low-rank edit is held against edge-risk limits of its own; all else is as in the preset (why no budget of caps is
    widened: docs/decisions/0013-preset-variants.md).
    """
    variant = copy.deepcopy(dict(preset))
    variant["_calibration_meta"]["edit_type"] = edit_type
    limits = variant["guards"].get(rmt.NAME, {})
    if edit_type == "lowrank_svd" and "epsilon_lower_rank" in limits:
        limits |= dict.fromkeys(("epsilon", "epsilon_rms"), limits["epsilon_lower_rank"])
    return variant


def family_caps(matrices: SpectralRecords, policy: Policy) -> dict[str, float]:
    """The reference's caps on |z| by family, widened to what the baseline itself needs; reported only.

    The budget of caps is shared between families by their size (largest remainders); a family's candidate is its
    k-th largest |z| for a share of k, never below the policy's cap, with a margin added.
    """
    scores = {label: sorted(map(abs, found.values()), reverse=True) for label, found in z_scores(matrices).items()}
    shares = _shares({label: len(found) for label, found in scores.items()}, int(policy.number("spectral.max_caps")))
    margin = _MARGIN.get(policy.tier, _DEFAULT_MARGIN)
    return {
        label: round(max(found[max(0, shares[label] - 1)], kappa(policy, label)) + margin, 3)
        for label, found in sorted(scores.items())
    }


def _shares(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """The budget split by size, in whole numbers, none above its size."""
    total = sum(sizes.values()) or 1
    raw = {label: budget * size / total for label, size in sizes.items()}
    shares = {label: min(int(value), sizes[label]) for label, value in raw.items()}
    for label in sorted(raw, key=lambda name: (int(raw[name]) - raw[name], name)):
        if sum(shares.values()) < budget and shares[label] < sizes[label]:
            shares[label] += 1
    return shares


def _values(policy: Policy, guard: str, keys: Sequence[str]) -> dict[str, Any]:
    return {key: policy.thresholds[f"{guard}.{key}"].value for key in keys}

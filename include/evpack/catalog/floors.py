"""Windows of a run: at least as many as tier and profile ask for.

A report with fewer windows or tokens than its policy's floors cannot be accepted whatever was measured, so a campaign
below them would end in FAIL after all its compute.
"""

from __future__ import annotations

import math
from typing import Literal

from evpack.catalog.policy import Policy, resolve_policy
from evpack.settings import Settings

Arm = Literal["preview", "final"]


def with_enough_windows(settings: Settings) -> Settings:
    """The settings with both arms raised to the floors of their tier and profile.

    Floors come from tier and profile alone: what configuration files may set are limits, no floors.
    """
    policy = resolve_policy(settings.tier, settings.profile)
    predicted = predicted_tokens(settings.seq_len, settings.advance)
    preview = max(settings.preview_windows, least_windows(policy, "preview", predicted))
    final = max(settings.final_windows, least_windows(policy, "final", predicted))
    if (preview, final) == (settings.preview_windows, settings.final_windows):
        return settings
    return settings.model_copy(update={"preview_windows": preview, "final_windows": final})


def predicted_tokens(seq_len: int, stride: int) -> int:
    """Tokens that a window predicts: those that the window before it has not, and never its first."""
    return min(stride, seq_len - 1)


def least_windows(policy: Policy, arm: Arm, predicted: int) -> int:
    """The largest of: the profile's own number, the tier's coverage where it gates, an arm's half of the token floor.

    Args:
        predicted: tokens that a window predicts; these count.
    """
    wanted = [policy.number("metrics.pm_ratio.min_tokens") / (2 * predicted)]
    if policy.flag("metrics.coverage.enforced"):
        wanted.append(policy.number(f"metrics.coverage.{arm}"))
    if policy.thresholds[f"dataset.{arm}_n"].value is not None:
        wanted.append(policy.number(f"dataset.{arm}_n"))
    return math.ceil(max(wanted))

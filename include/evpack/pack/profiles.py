"""What a verification profile asks of a report beyond that it follows from its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from evpack.catalog.scenarios import Strictness
from evpack.evaluation.report import GUARD_FLAGS

Profile = Literal["dev", "ci", "release"]
PROFILES: tuple[Profile, ...] = ("dev", "ci", "release")
"""From the mildest to the strictest."""

_LOSSES = ("primary_metric_acceptable", "preview_final_drift_acceptable")
_DEMANDS: dict[Profile, tuple[str, ...]] = {
    "dev": (),
    "ci": _LOSSES,
    "release": (*_LOSSES, *(flag for flag in GUARD_FLAGS.values() if flag is not None)),
}
"""Flags that a report must carry as true; dev asks only that the report follows from its records."""
_WHEN_THERE = {"release": ("primary_metric_tail_acceptable", "guard_overhead_acceptable")}
"""Flags that must be true where the report has them."""
_MEASURED = ("spectral", "rmt")
"""Guards whose two sides must have been measured in one way, from profile ci on."""
_RANK = {"dev": 0, "small": 0, "ci": 1, "ci_cpu": 1, "release": 2}
"""Place in PROFILES of every profile that a campaign can name."""


def strictest(*names: str) -> Profile:
    """The strictest of some profiles; those of the tier data count as what they ask for here."""
    return PROFILES[max(_RANK[name] for name in names)]


def unmet(report: Mapping[str, Any], profile: Profile) -> Iterator[str]:
    """What a profile asks for and a report does not have.

    Args:
        report: evaluation.report.json, valid by its schema.
    """
    flags = report["validation"]
    wanted = (*_DEMANDS[profile], *(flag for flag in _WHEN_THERE.get(profile, ()) if flag in flags))
    for flag in wanted:
        if flags.get(flag) is not True:
            yield f"profile {profile} asks for {flag}, the report has {flags.get(flag)!r}"
    for guard in _MEASURED if profile != "dev" else ():
        block = report[guard]
        if block.get("evaluated") and block.get("measurement_contract_match") is not True:
            yield f"profile {profile} asks that {guard} measured both models in one way"


def unexpected(report: Mapping[str, Any], strictness: Strictness, profile: Profile) -> Iterator[str]:
    """What in a campaign's report a profile does not let pass.

    Reports that must pass have to meet the profile, and those that must fail must not. Whether an injection was
    detected, and what informational scenarios give, is the verdict's business.
    """
    if strictness is Strictness.MUST_PASS:
        yield from unmet(report, profile)
    elif strictness is Strictness.MUST_FAIL and profile != "dev" and not any(unmet(report, profile)):
        yield f"a report that must fail meets profile {profile}"

"""RMT guard: how much the activations' largest singular values moved against the baseline on the same windows.

Pure: two sets of records and a policy in, findings out. Per module the edge risks of the sampled windows are
averaged; ``d = ln(subject / baseline)`` of the averages, so that a change counts in either direction. Two statistics
are held against limits. The mean of |d| without the fifth of the modules that moved most shows damage that moves all
modules a little, and clean edits hardly, which move the modules that they edit. Small changes of every block add up
along the residual stream as the steps of a random walk do, so its limit grows with the root of the number of blocks.
The root mean square shows what the first leaves out: a few modules that moved far. See
docs/decisions/0010-two-edge-risk-statistics.md. The reference's maximum per family hides all but one module; it is
reported beside them and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from evpack.catalog.policy import Policy
from evpack.checkpoint.scope import block_of
from evpack.errors import EvidenceError
from evpack.files import digest_json
from evpack.guards.base import GuardResult, about
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import family

NAME = "rmt"
TRIMMED = 0.2
"""Share of the modules that is left out, those that moved most (the usual one of a trimmed mean)."""
_WORDS = {"trimmed_mean": "trimmed mean", "rms": "root mean square"}
_TOP = 5
"""Modules shown in a report."""


def assess(
    subject: ActivationRecords, baseline: ActivationRecords, policy: Policy, *, lowers_rank: bool = False
) -> tuple[GuardResult, dict[str, Any]]:
    """The guard's result and its block of a report (without the places of the records).

    Args:
        lowers_rank: whether a clean edit of the plan means to lower ranks, which moves activations more than other
            clean edits do and has an epsilon of its own.

    Raises:
        EvidenceError: when the two are not of the same windows, or nothing was measured.
    """
    require_same_windows(subject, baseline)
    before, now = mean_risks(baseline), mean_risks(subject)
    unheard = {family(name) for name in baseline.modules} - {family(name) for name in before}
    if unheard or not before:
        which = min(unheard, default="any")
        raise EvidenceError(
            f"no module of the baseline's family {which!r} has an edge risk", "the RMT guard cannot judge this model"
        )
    moved = {n: math.log(now[n] / risk) for n, risk in before.items() if n in now}
    lost = sorted(before.keys() - now.keys())
    shapes = sorted(n for n in moved if subject.modules[n].m != baseline.modules[n].m)
    found = Moved.of(moved.values()) if moved else None
    limits = _limits(policy, block_count(before), lowers_rank)
    findings = []
    if lost:
        text = "modules that the baseline scores have no finite edge risk"
        findings.append(about("edge_risk_lost", "fatal", text, lost))
    if shapes:
        findings.append(about("rows_changed", "fatal", "modules whose matrices have other rows", shapes))
    worst = sorted(moved, key=lambda name: -abs(moved[name]))
    for kind, what in (("trimmed_mean", "edge_risk_moved"), ("rms", "edge_risk_moved_far")):
        if found is not None and (value := getattr(found, kind)) > limits[kind]:
            text = f"{_WORDS[kind]} of ln edge risk ratio {value:.4g}, at most {limits[kind]:g} allowed"
            findings.append(about(what, "fatal", text, worst))
    result = GuardResult(NAME, "post", tuple(findings), metrics={"statistic": found and found.trimmed_mean})
    return result, _block(result, found, limits, moved, before, now, subject, policy)


@dataclass(frozen=True)
class Moved:
    """How far the modules of a model moved: ln ratios summed up in two ways."""

    trimmed_mean: float
    """Mean size without the share that is largest."""
    rms: float
    """Root mean square over all."""

    @classmethod
    def of(cls, changes: Collection[float]) -> Moved:
        """Of at least one change."""
        return cls(trimmed_mean(changes), math.sqrt(fmean(d * d for d in changes)))


def _limits(policy: Policy, blocks: int, lowers_rank: bool) -> dict[str, float]:
    if lowers_rank:
        return dict.fromkeys(_WORDS, policy.number("rmt.epsilon_lower_rank"))
    return {
        "trimmed_mean": policy.number("rmt.epsilon") * math.sqrt(blocks),
        "rms": policy.number("rmt.epsilon_rms"),
    }


def block_count(modules: Iterable[str]) -> int:
    """Transformer blocks that the modules belong to; at least 1."""
    return max(1, len({block for block in map(block_of, modules) if block is not None}))


def trimmed_mean(changes: Collection[float], left_out: float = TRIMMED) -> float:
    """Mean size of the changes without the share of them that is largest; at least one of them always counts."""
    sizes = sorted(map(abs, changes))
    return fmean(sizes[: max(1, math.ceil((1.0 - left_out) * len(sizes)))])


def require_same_windows(subject: ActivationRecords, baseline: ActivationRecords) -> None:
    """Refuse to compare what was not measured on the same windows in the same way.

    Raises:
        EvidenceError: naming what differs.
    """
    for name in ("run", "windows_digest", "windows", "contract"):
        ours, theirs = getattr(subject, name), getattr(baseline, name)
        if ours != theirs:
            raise EvidenceError(f"activations of subject and baseline differ in {name}: {ours} and {theirs}")


def mean_risks(records: ActivationRecords) -> dict[str, float]:
    """Edge risk of each module, averaged over windows; modules without a positive one in every window are left out."""
    risks = {name: module.edge_risk for name, module in records.modules.items()}
    return {
        name: fmean([risk for risk in found if risk is not None])
        for name, found in risks.items()
        if found and all(risk is not None and risk > 0 for risk in found)
    }


def _block(
    result: GuardResult,
    found: Moved | None,
    limits: Mapping[str, float],
    moved: Mapping[str, float],
    before: Mapping[str, float],
    now: Mapping[str, float],
    subject: ActivationRecords,
    policy: Policy,
) -> dict[str, Any]:
    largest = sorted(moved, key=lambda name: (-abs(moved[name]), name))[:_TOP]
    return {
        "status": result.status,
        "action": result.action,
        "stable": result.passed,
        "statistic": "trimmed_mean_abs_log_edge_risk_ratio",
        "trimmed_mean_log_ratio": found and found.trimmed_mean,
        "epsilon": limits["trimmed_mean"],
        "blocks": block_count(before),
        "rms_log_ratio": found and found.rms,
        "epsilon_rms": limits["rms"],
        "failures": [violation.to_json() for violation in result.violations],
        "summary": {
            "modules": len(before),
            "modules_compared": len(moved),
            "windows": len(subject.windows),
            "max_abs_log_ratio": max(map(abs, moved.values()), default=None),
            "max_edge_ratio": max((math.exp(d) for d in moved.values()), default=None),
            "mean_log_ratio": fmean(moved.values()) if moved else None,
            "mean_abs_log_ratio": fmean(map(abs, moved.values())) if moved else None,
        },
        "top_modules": [
            {"module": n, "family": family(n), "edge_base": before[n], "edge_cur": now[n], "log_ratio": moved[n]}
            for n in largest
        ],
        "reported": _families(before, now, policy),
        "measurement_contract": subject.contract,
        "measurement_contract_hash": digest_json(subject.contract)[:16],
        "measurement_contract_match": True,
    }


def _families(before: Mapping[str, float], now: Mapping[str, float], policy: Policy) -> dict[str, Any]:
    """The reference's rule: the largest risk of each family may grow by its epsilon. Decides nothing."""
    families: dict[str, Any] = {}
    for label in sorted({family(name) for name in before}):
        base = max(risk for name, risk in before.items() if family(name) == label)
        cur = max((risk for name, risk in now.items() if family(name) == label), default=None)
        key = f"rmt.epsilon_by_family.{label}"
        allowed = policy.number(key if key in policy.thresholds else "rmt.epsilon_default")
        families[label] = {
            "edge_base": base,
            "edge_cur": cur,
            "epsilon": allowed,
            "ratio": None if cur is None else cur / base,
            "exceeded": cur is None or cur > (1 + allowed) * base,
        }
    return {"gates": False, "families": families}

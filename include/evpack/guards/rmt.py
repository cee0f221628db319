"""RMT guard: how much the activations' largest singular values moved against the baseline on the same windows.

Pure: two sets of records and a policy in, findings out. Per module the edge risks of the sampled windows are
averaged; ``d = ln(subject / baseline)`` of the averages; the statistic is the root mean square of d over all
modules, so that a change counts in either direction and wherever it happens. The reference's maximum per family
hides all but one module; it is reported beside it and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from evpack.catalog.policy import Policy
from evpack.errors import EvidenceError
from evpack.files import digest_json
from evpack.guards.base import GuardResult, about
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import family

NAME = "rmt"
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
    epsilon = policy.number("rmt.epsilon_lower_rank" if lowers_rank else "rmt.epsilon")
    before, now = mean_risks(baseline), mean_risks(subject)
    if not before:
        raise EvidenceError("no module of the baseline has an edge risk", "the RMT guard cannot judge this model")
    moved = {n: math.log(now[n] / risk) for n, risk in before.items() if n in now}
    lost = sorted(before.keys() - now.keys())
    shapes = sorted(n for n in moved if subject.modules[n].m != baseline.modules[n].m)
    statistic = math.sqrt(fmean(d * d for d in moved.values())) if moved else None
    findings = []
    if lost:
        text = "modules that the baseline scores have no finite edge risk"
        findings.append(about("edge_risk_lost", "fatal", text, lost))
    if shapes:
        findings.append(about("rows_changed", "fatal", "modules whose matrices have other rows", shapes))
    if statistic is not None and statistic > epsilon:
        worst = sorted(moved, key=lambda name: -abs(moved[name]))
        text = f"root mean square of ln edge risk ratio {statistic:.4g}, at most {epsilon:g} allowed"
        findings.append(about("edge_risk_moved", "fatal", text, worst))
    result = GuardResult(NAME, "post", tuple(findings), metrics={"statistic": statistic})
    return result, _block(result, statistic, epsilon, moved, before, now, subject, policy)


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
        name: fmean(risk for risk in found if risk is not None)
        for name, found in risks.items()
        if found and all(risk is not None and risk > 0 for risk in found)
    }


def _block(
    result: GuardResult,
    statistic: float | None,
    epsilon: float,
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
        "statistic": "rms_log_edge_risk_ratio",
        "rms_log_ratio": statistic,
        "epsilon": epsilon,
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

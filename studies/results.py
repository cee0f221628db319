"""From measured subjects to `studies/results/*.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy
from evpack.evaluation.scoring import versions
from evpack.files import digest_json, utc_now, write_json
from studies.coverage import BCA_TRIALS, TRIALS, coverage, differences
from studies.ground import Ground
from studies.known import NOISE_DRAWS, RANDOM_MATRICES, known_answers
from studies.models import Studied
from studies.rates import false_alarms, middle, power
from studies.roc import Question, curve
from studies.subjects import Subject
from studies.table import Row, edge_risks_of_other_windows, rows

RESULTS = Path(__file__).parent / "results"


def _harmless(row: Row) -> bool:
    return row.kind in ("noop", "mild")


def _changes_no_rank(row: Row) -> bool:
    return _harmless(row) or (row.kind == "clean" and row.subject.family != "lowrank_svd")


def _clean_svd(row: Row) -> bool:
    return row.kind == "clean" and row.subject.family == "lowrank_svd"


def _passing(row: Row) -> bool:
    return _harmless(row) or row.kind == "clean"


def _fault(*families: str) -> Any:
    return lambda row: row.subject.edit is None and row.subject.family in families


_SCALED = ("spectral_moderate_scale", "ve_mlp_scale_skew")
_RUINED = ("extreme_quant", "rank_collapse", "norm_collapse")
QUESTIONS = (
    Question(
        "Sigma moved: cap",
        "spectral_ratio",
        "spectral.ratio_cap",
        _passing,
        _fault(*_SCALED, "scale_explosion", "rank_collapse", "norm_collapse"),
    ),
    Question(
        "Sigma moved: fatal",
        "spectral_ratio",
        "spectral.ratio_fatal",
        lambda row: _passing(row) or _fault(*_SCALED)(row),
        _fault("scale_explosion", "rank_collapse", "norm_collapse"),
    ),
    Question(
        "Stable rank lost: fatal",
        "stable_rank_ratio",
        "spectral.stable_rank.fatal_ratio",
        _changes_no_rank,
        _fault("rank_collapse"),
        lower=True,
    ),
    Question(
        "Rows or columns collapsed: fatal",
        "collapsed_share",
        "spectral.norm_collapse.fatal_fraction",
        _passing,
        _fault("norm_collapse"),
    ),
    Question(
        "Edge risks moved everywhere",
        "edge_trimmed_per_root_block",
        "rmt.epsilon",
        _changes_no_rank,
        _fault("rmt_norm_noise"),
    ),
    Question("Edge risks moved far somewhere", "edge_rms", "rmt.epsilon_rms", _changes_no_rank, _fault(*_RUINED)),
    Question(
        "Edge risks moved far by an edit that lowers ranks",
        "edge_rms",
        "rmt.epsilon_lower_rank",
        _clean_svd,
        lambda row: row.subject.id == "svd_rank32_stress",
    ),
    Question(
        "Variance of a branch moved",
        "variance_deviation",
        "variance.deadband",
        _changes_no_rank,
        _fault("ve_mlp_scale_skew"),
    ),
)
"""Each threshold that is chosen here, with what it must let pass and what it must catch."""
ALTERNATIVES = (
    "edge_trimmed_per_root_block",
    "edge_trimmed",
    "edge_trimmed_by_a_tenth_per_root_block",
    "edge_trimmed_by_a_third_per_root_block",
    "edge_mean_per_root_block",
    "edge_median_per_root_block",
    "edge_rms_per_root_block",
    "edge_family_rms_max_per_root_block",
    "edge_norms_mean_per_root_block",
    "edge_norms_rms_per_root_block",
)
"""Ways to sum up edge risks that were held against each other."""


def model_results(
    ground: Ground, studied: Studied, subjects: Sequence[Subject], found: Sequence[Row]
) -> dict[str, Any]:
    """Rates of one model at its own windows, and the metric's at half of them."""
    policy = ground.policy
    rated = [subject for subject in subjects if subject.kind in ("noop", "mild", "clean")]
    demand = 2 * ground.model.arm
    enough = ground.model.arm // 2 >= policy.number("metrics.coverage.preview")
    halved = false_alarms(list(rows(ground, rated, policy, every=2))) if enough else None
    return {
        "model": ground.model.name,
        "about": studied.about,
        "digest": ground.baseline.digest(),
        "counts": asdict(studied.counts),
        "windows_per_run": demand,
        "tokens_per_window": ground.windows.seq_len,
        "windows_of_text": len(ground.windows.tokens),
        "runs": ground.model.runs,
        "tier": policy.tier,
        "profile": policy.profile,
        "reports": len(found),
        "versions": versions(),
        "measured_at": utc_now()[:10],
        "false_alarms": false_alarms(found),
        "false_alarms_at_half_the_windows": halved and {"windows": demand // 2, **halved},
        "power": power(ground, found, policy),
        "edge_risks": _edge_risks(ground, found),
    }


def _edge_risks(ground: Ground, found: Sequence[Row]) -> dict[str, Any]:
    """Root mean squares of d: by other windows, and on the same ones by no-ops and clean edits."""
    by = {kind: [row.statistics.get("edge_rms") for row in found if row.kind == kind] for kind in ("noop", "clean")}
    return {
        "other_windows": middle(edge_risks_of_other_windows(ground)),
        **{kind: middle(values) for kind, values in by.items()},
    }


def threshold_results(found: Iterable[Row], policy: Policy) -> dict[str, Any]:
    """Every threshold with the distributions on both sides, and the ways to sum up edge risks side by side."""
    everything = list(found)
    chosen = [curve(question, everything, policy.number(question.key)) for question in QUESTIONS]
    edge = next(question for question in QUESTIONS if question.key == "rmt.epsilon")
    others = [
        {
            key: value
            for key, value in curve(Question(name, name, edge.key, edge.passes, edge.exceeds), everything, None).items()
            if key != "points"
        }
        for name in ALTERNATIVES
    ]
    body = {"questions": chosen, "edge_alternatives": others}
    return {**body, "digest": digest_json(body)[:16]}


def coverage_results(
    grounds: Sequence[tuple[Ground, Sequence[Subject]]], trials: int = TRIALS, bca_trials: int = BCA_TRIALS
) -> dict[str, Any]:
    """Coverage over every pool of every model that has some."""
    found = [row for ground, pools in grounds for row in coverage(ground, pools, trials=trials, bca_trials=bca_trials)]
    return {"trials": trials, "bca_trials": bca_trials, "rows": found}


def known_results(
    grounds: Sequence[tuple[Ground, Sequence[Subject]]], matrices: int = RANDOM_MATRICES, draws: int = NOISE_DRAWS
) -> dict[str, Any]:
    """Known answers, on the models' own matrices and differences."""
    samples = [differences(ground, pool)[:64] for ground, pools in grounds for pool in pools]
    return known_answers([ground.baseline for ground, _ in grounds], samples, matrices=matrices, draws=draws)


def write(name: str, value: Any) -> None:
    """Write studies/results/<name>.json."""
    write_json(RESULTS / f"{name}.json", value)

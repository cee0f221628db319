"""docs/guards.md and its pictures, made from `studies/results/*.json`; no figure on the page was typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evpack.catalog.policy import Policy, resolve_policy
from evpack.files import read_json
from evpack.publishing import write_atomic
from studies.pictures import picture
from studies.proportion import proportion
from studies.results import RESULTS
from studies.subjects import RESHARDED

ROOT = Path(__file__).parent
DOCS = ROOT.parent / "docs"
PICTURES = DOCS / "pictures"
TEMPLATE = ROOT / "guards.md"


def write_page() -> None:
    """Write the page and the pictures."""
    thresholds = read_json(RESULTS / "thresholds.json")
    for question in thresholds["questions"]:
        write_atomic(PICTURES / f"roc_{slug(question)}.svg", picture(question).encode())
    write_atomic(DOCS / "guards.md", page(TEMPLATE.read_text(encoding="utf-8"), thresholds).encode())


def page(template: str, thresholds: Mapping[str, Any]) -> str:
    """The template with each ``{{name}}`` replaced.

    Raises:
        KeyError: when the template asks for something that nobody makes.
    """
    models = [read_json(path) for path in sorted(RESULTS.glob("model_*.json"))]
    covered = read_json(RESULTS / "coverage.json")
    parts = {
        "models": _models(models),
        "clusters": _clusters(models),
        "alarms": _alarms(models),
        "half": _half(models),
        "clean": _clean(models),
        "required": _power(models, "required"),
        "catastrophic": _catastrophic(models),
        "informational": _power(models, "informational"),
        "coverage": _coverage(covered),
        "trials": f"{covered['trials']:,}",
        "bca_trials": str(covered["bca_trials"]),
        "known": _known(read_json(RESULTS / "known_answers.json")),
        "alternatives": _alternatives(thresholds["edge_alternatives"]),
        "edge_risks": _edge_risks(models),
        "thresholds": _thresholds(thresholds["questions"]),
        **{
            f"roc:{q['key']}": f"![{q['name']}](pictures/roc_{slug(q)}.svg)\n\n{_gap(q)}"
            for q in thresholds["questions"]
        },
        **_policy_values(resolve_policy("balanced", "small")),
    }
    pieces = template.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def slug(question: Mapping[str, Any]) -> str:
    """A question's picture."""
    return str(question["key"]).replace(".", "_")


def _policy_values(policy: Policy) -> dict[str, str]:
    return {f"policy:{key}": _figure(leaf.value) for key, leaf in policy.thresholds.items()}


def _models(models: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            m["model"],
            m["about"],
            f"{m['windows_per_run']} x {m['tokens_per_window']}",
            f"{m['runs']} of {m['windows_of_text']} windows",
            str(m["reports"]),
        ]
        for m in models
    )
    return _table(["model", "what it is", "windows per report", "disjoint runs", "reports"], rows)


def _clusters(models: Sequence[Mapping[str, Any]]) -> str:
    """How many of the harmless reports are independent, at most and at least."""

    def row(model: Mapping[str, Any]) -> list[str]:
        failed, counts = model["false_alarms"]["harmless"]["failed"], model["counts"]
        runs = min(model["runs"], max(counts["noop"], counts["mild"]))
        bounds = (failed["high"], proportion(min(failed["hits"], runs), runs)["high"])
        return [
            *(model["model"], str(failed["trials"]), str(runs), str(counts["noop"] // RESHARDED)),
            *(f"{100 * bound:.2f} %" for bound in bounds),
        ]

    heads = ["model", "harmless reports", "runs that they share", "resharded", "bound by reports", "bound by runs"]
    return _table(heads, map(row, models))


def _alarms(models: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [m["model"], what, _rate(found["failed"]), _reasons(found), *_signals(m, found)]
        for m in models
        for kind, what in (("noop", "no-op"), ("mild", "mild"), ("harmless", "both"))
        if (found := m["false_alarms"][kind])
    ]
    return _table(["model", "class", "reports failed", "by", "remediation", "detected shift"], rows)


def _signals(model: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Remediation and detected shift, the latter where reports have the windows that it takes."""
    needed = resolve_policy(model["tier"], model["profile"]).number("metrics.detected_shift.min_windows")
    shift = _rate(found["signals"]["detected_shift"], short=True) if model["windows_per_run"] >= needed else "-"
    return [_rate(found["signals"]["remediation"], short=True), shift]


def _half(models: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            m["model"],
            str(h["windows"]),
            _rate(h["harmless"]["failed"]),
            _reasons(h["harmless"]),
            _rate(h["clean"]["failed"]),
        ]
        for m in models
        if (h := m["false_alarms_at_half_the_windows"]) is not None
    )
    return _table(["model", "windows", "harmless reports failed", "by", "clean reports failed"], rows)


def _clean(models: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [m["model"], edit, _rate(found["failed"]), _reasons(found), *_signals(m, found)]
        for m in models
        for edit, found in m["false_alarms"]["clean_by_edit"].items()
    )
    return _table(["model", "tuned edit", "reports failed", "by", "remediation", "detected shift"], rows)


def _power(models: Sequence[Mapping[str, Any]], kind: str) -> str:
    rows = (
        [
            m["model"],
            name,
            f"{found['places_detected']} of {found['places']}",
            _rate(found["detected"]),
            _rate(found["any_signal"], short=True),
            _ratio(found["ratio"]),
            ", ".join(f"{detector} {count}" for detector, count in found["by_detector"].items()) or "none",
        ]
        for m in models
        for name, found in m["power"][kind].items()
    )
    return _table(["model", "damage", "places", "reports detected", "any signal", "ratio", "by"], rows)


def _catastrophic(models: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            m["model"],
            name,
            "-" if (r := found["ratio_of_all_windows"]) is None else f"{r[0]:.4g} to {r[1]:.4g} ({found['windows']})",
            "yes" if found["truly_fails"] else "**no**",
            _rate(found["rejected"]),
            _rate(found["detected"]),
        ]
        for m in models
        for name, found in m["power"]["catastrophic"].items()
    )
    return _table(["model", "edit", "true ratio (windows)", "truly fails", "reports rejected", "detected"], rows)


def _coverage(found: Mapping[str, Any]) -> str:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["model"], row["subject"].removeprefix("pool_")), []).append(row)
    sizes = sorted({row["windows"] for row in found["rows"]})
    lines = []
    for (model, subject), rows in groups.items():
        by = {row["windows"]: row for row in rows}
        cells = [_percent(by[n]["t"]) if n in by else "" for n in sizes]
        scheduled = [f"{100 * by[n]['t_as_scheduled']['rate']:.1f}" if n in by else "" for n in sizes]
        bca = [f"{100 * by[n]['bca']['rate']:.1f}" for n in sizes if n in by and "bca" in by[n]]
        first = rows[0]
        lines.append(
            [
                model,
                subject,
                f"{first['truth']:.2g}",
                _figure(first["skewness"]),
                *cells,
                " / ".join(scheduled),
                " / ".join(bca),
            ]
        )
    heads = [
        "model",
        "subject",
        "true mean",
        "skewness",
        *(f"t, n = {n}" for n in sizes),
        "t as scheduled",
        "BCa, n = 32 / 64",
    ]
    return _table(heads, lines)


def _known(found: Mapping[str, Any]) -> str:
    published = found["bca"]["published"]
    rows = [
        [
            "sigma of random matrices against the exact decomposition",
            f"{found['sigma_random']['matrices']} matrices",
            f"largest relative error {found['sigma_random']['largest_relative_error']:.1e}",
        ],
        [
            "sigma of the models' own matrices",
            f"{found['sigma_real']['matrices']} matrices",
            f"largest relative error {found['sigma_real']['largest_relative_error']:.1e}",
        ],
        *(
            [
                f"edge risk of pure noise, {n['rows']} x {n['columns']}",
                f"{n['draws']} draws, {n['expected']:.4f} expected",
                f"mean {n['mean']:.4f} ({n['min']:.3f} to {n['max']:.3f})",
            ]
            for n in found["noise_edge"]
        ),
        [
            f"BCa, {published['source']}",
            f"published {_pair(published['interval'])}",
            f"found {_pair(published['found'])}",
        ],
        [
            "BCa in use against the one that gave that",
            f"{found['bca']['real_samples']} real samples",
            f"largest difference {100 * found['bca']['largest_difference_in_widths']:.1f} % of the width",
        ],
    ]
    return _table(["what", "against", "result"], rows)


def _alternatives(found: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            f["statistic"].removeprefix("edge_"),
            _figure(f["gap"][0]),
            _figure(f["gap"][1]),
            f"{f['gap'][1] / f['gap'][0]:.2f}",
            f"{f['auc']:.4f}",
        ]
        for f in found
    )
    return _table(["statistic", "largest that must pass", "least of the noise", "ratio", "area"], rows)


def _edge_risks(models: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            m["model"],
            *(
                f"{found['median']:.2g} ({found['least']:.2g} to {found['most']:.2g})"
                for found in (m["edge_risks"][kind] for kind in ("other_windows", "noop", "clean"))
            ),
        ]
        for m in models
    )
    return _table(["model", "the baseline, other windows", "no-op, same windows", "clean edits, same windows"], rows)


def _thresholds(questions: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            f"`{q['key']}`",
            _figure(q["threshold"]) + (" (as 1/x)" if q["turned"] else ""),
            *map(_figure, q["gap"]),
            f"{q['auc']:.4f}",
            f"{q['alarms']} of {sum(g['n'] for g in q['must_pass'])}",
            f"{q['hits']} of {sum(g['n'] for g in q['must_exceed'])}",
        ]
        for q in questions
    )
    return _table(
        ["threshold", "value", "largest that must pass", "least that must not", "area", "alarms", "caught"], rows
    )


def _gap(question: Mapping[str, Any]) -> str:
    low, high = question["gap"]
    kind = "A gap" if low < high else "No gap: the two overlap"
    return f"{kind}: what must pass reaches {_figure(low)}, what must not begins at {_figure(high)}."


def _reasons(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items()) or "-"


def _rate(found: Mapping[str, Any], *, short: bool = False) -> str:
    if found["rate"] is None:
        return "-"
    bounds = (
        f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %"
        if found["hits"]
        else f"at most {100 * found['high']:.2f} %"
    )
    return f"{found['hits']} of {found['trials']}" + ("" if short else f" ({bounds})")


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['rate']:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f})"


def _ratio(found: Mapping[str, float] | None) -> str:
    return "not finite" if found is None else f"{found['least']:.4g} to {found['most']:.4g}"


def _pair(values: Iterable[float]) -> str:
    return " to ".join(f"{value:.1f}" for value in values)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])

"""Names inside a pack: where everything stands in layout v1, and which names are allowed at all.

========================  ==============================================================================
root                      README.md manifest.json checksums.sha256 manifest.signature.json
results/                  final verdict, its summaries, verification_summary.json, analysis, HTML
state/                    plan, settings, policy, scenarios, tuned parameters, model revisions, presets/
state/models/<model>/     model_profile.json, schedule.json (windows), variants/<scenario>.json
metadata/                 source_repo.json, environment.json
reports/<model>/          <scenario>/run_<n>/  errors/<scenario>/  calibration/run_<k>/
========================  ==============================================================================
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.sha256"
SIGNATURE = "manifest.signature.json"
CONTROL = frozenset({MANIFEST, CHECKSUMS, SIGNATURE})
"""Files that checksums.sha256 cannot cover: itself, what names its digest, and what signs that."""

README = "README.md"
VERDICT = "results/final_verdict.json"
VERDICT_TEXT = "results/final_verdict.txt"
VERIFICATION = "results/verification_summary.json"
PAGE = "results/final_verdict.html"
PLAN = "state/plan.json"
SETTINGS = "state/settings.json"
POLICY = "state/policy.json"
SCENARIOS = "state/scenarios.json"
TUNED = "state/tuned_edit_params.json"
REVISIONS = "state/model_revisions.json"
SOURCE = "metadata/source_repo.json"
ENVIRONMENT = "metadata/environment.json"

REPORT = "evaluation.report.json"
RUNTIME = "runtime.manifest.json"
RECORDS = "records.json"

MAX_NAME = 240
"""Longest path in a pack, characters: below the limit of every common file system and archive format."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


def name_problem(name: str) -> str | None:
    """Why a path may not stand in a pack, or None.

    Allowed is one spelling only: relative, ``/`` between segments of ASCII letters, digits and ``._+-`` that do not
    start with ``.`` or ``-``. That leaves no room for ``..``, ``//``, ``./``, backslashes, control characters,
    Unicode normal forms or platform litter.
    """
    if len(name) > MAX_NAME:
        return f"longer than {MAX_NAME} characters"
    if not all(_SEGMENT.fullmatch(segment) for segment in name.split("/")):
        return "not a canonical relative name of ASCII letters, digits and ._+-"
    return None


def collisions(names: Iterable[str]) -> list[str]:
    """Names that a file system without case would confuse, as lower-case spellings, sorted."""
    return sorted(name for name, count in Counter(name.lower() for name in names).items() if count > 1)


def report_dir(model: str, scenario: str, category: str, run: int) -> str:
    """Directory of one report inside a pack (no trailing slash); the run number of an error injection is not shown."""
    if category == "error_injection":
        return f"reports/{model}/errors/{scenario}"
    return f"reports/{model}/{scenario}/run_{run}"


def in_pack(model: str, path: str) -> str:
    """Pack name of a file that a report names relative to its model's directory (``reports/...``)."""
    return f"reports/{model}/{path.removeprefix('reports/')}"


def model_state(model: str, name: str) -> str:
    """Pack name of a file about a model: profile, schedule, variants/<scenario>.json."""
    return f"state/models/{model}/{name}"

"""Names inside a pack: where everything stands, and which names are allowed at all.

========================  ==============================================================================
root                      README.md manifest.json checksums.sha256 manifest.signature.json
results/                  final verdict, its summaries, verification_summary.json, analysis, HTML
state/                    plan, lane changes, settings, policy, scenarios, tuned parameters, revisions, presets/
state/models/<model>/     model_profile.json, schedule.json (windows), variants/<scenario>.json
metadata/                 source_repo.json, environment.json
reports/<model>/          <scenario>/run_<n>/  errors/<scenario>/  calibration/run_<k>/
========================  ==============================================================================

This is layout v1, and its names are what the code calls files by. Layout v2 puts the verdict and its summaries into
results/verdicts/, other analysis into results/analysis/, state/ into metadata/, and copies of the three control files
into metadata/; `Layout.place` translates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from evpack import sealed
from evpack.evaluation.report import REPORT_NAME

MANIFEST, CHECKSUMS = sealed.MANIFEST, sealed.CHECKSUMS
SIGNATURE = "manifest.signature.json"
CONTROL = (CHECKSUMS, MANIFEST, SIGNATURE)
"""Files that checksums.sha256 cannot cover: itself, what names its digest, and what signs that."""

README = "README.md"
VERDICT = "results/final_verdict.json"
VERDICT_TEXT = "results/final_verdict.txt"
VERIFICATION = "results/verification_summary.json"
PAGE = "results/final_verdict.html"
REPEATS = "results/determinism_repeats.json"
PLAN = "state/plan.json"
LANE_CHANGES = "state/lane_changes.json"
SETTINGS = "state/settings.json"
POLICY = "state/policy.json"
SCENARIOS = "state/scenarios.json"
TUNED = "state/tuned_edit_params.json"
REVISIONS = "state/model_revisions.json"
SOURCE = "metadata/source_repo.json"
ENVIRONMENT = "metadata/environment.json"

REPORT = REPORT_NAME
RUNTIME = "runtime.manifest.json"
RECORDS = "records.json"
VERIFIED = "verify.json"
REPORT_PAGE = "evaluation.html"
BASELINE_REPORT = "baseline_report.json"
BASELINE_RECORDS = "baseline_records.json"
SPECTRAL = "spectral_records.json"
ACTIVATIONS = "activation_records.json"
BASELINE_ACTIVATIONS = "baseline_activation_records.json"

SUMMARIES = tuple(
    f"results/{name}_summary.json" for name in ("category", "guard_signal", "guard_intervention", "scenario_signal")
)
INTERVENTION_SUMMARY = "results/guard_intervention_summary.json"
SCENARIO_SUMMARY = "results/scenario_signal_summary.json"
_VERDICTS = frozenset({VERDICT, VERDICT_TEXT, PAGE, *SUMMARIES})

LayoutName = Literal["v1", "v2"]
MAX_NAME = 240
"""Longest path in a pack, characters: below the limit of every common file system and archive format."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Layout:
    """Where files stand in a pack of one layout."""

    name: LayoutName = "v1"

    def place(self, name: str) -> str:
        """Where the file with this layout v1 name stands."""
        head, _, rest = name.partition("/")
        if self.name == "v1" or name == VERIFICATION or head not in ("results", "state"):
            return name
        if head == "state":
            return f"metadata/{rest}"
        return f"results/verdicts/{rest}" if name in _VERDICTS else f"results/analysis/{rest}"

    def copies(self) -> dict[str, str]:
        """Copies of control files, as ``{copy: original}``; byte-equal and not listed in the checksums."""
        return {f"metadata/{name}": name for name in CONTROL} if self.name == "v2" else {}

    def control(self) -> frozenset[str]:
        """Names that checksums.sha256 does not list."""
        return frozenset(CONTROL) | self.copies().keys()


LAYOUTS = {name: Layout(name) for name in get_args(LayoutName)}


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

"""One report checked where it lies, in a run directory or in a pack, by the same recomputation as a whole pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evpack.catalog.policy import Policy
from evpack.errors import BadInput, EvidenceError, MissingFile
from evpack.files import parse_json
from evpack.pack import inventory, layout
from evpack.pack.build import own_limits
from evpack.pack.collect import contents
from evpack.pack.evidence import MALFORMED, entry, open_campaign
from evpack.pack.inventory import Files
from evpack.pack.layout import Layout
from evpack.pack.profiles import Profile, unmet
from evpack.pack.recheck_model import check_model
from evpack.pack.recheck_report import VERIFY_FORMAT, Judged, judge_report, pack_name
from evpack.plan.model import load_plan
from evpack.rundir import RunDir
from evpack.verdict.evidence import expected_reports


@dataclass(frozen=True)
class ReportCheck:
    """What checking one report gave."""

    path: Path
    judged: Judged
    inputs: tuple[str, ...]
    """What is wrong with the campaign's frozen inputs or with what the report's model rests on."""
    unmet: tuple[str, ...]
    """What the profile demands and the report does not have."""

    @property
    def reason(self) -> Literal["ok", "policy_fail", "malformed"]:
        """The reference's word for the outcome."""
        if not self.judged.usable:
            return "malformed"
        return "policy_fail" if self.judged.errors or self.inputs or self.unmet else "ok"

    @property
    def exit_code(self) -> int:
        """0 all holds; 1 something does not follow or the profile's demands are not met; 2 no readable report."""
        return {"ok": 0, "policy_fail": 1, "malformed": 2}[self.reason]

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, a line each."""
        found = (self.judged.problem,) if self.judged.problem else ()
        return (*found, *self.inputs, *self.judged.errors, *self.unmet)

    def result(self) -> dict[str, Any]:
        """The entry of `results[]`."""
        stated = parse_json(self.judged.verified, "verify.json")["results"][0] if self.judged.verified else {}
        found = {"path": str(self.path), "ok": self.reason == "ok", "reason": self.reason}
        return {**stated, **found, "problems": list(self.problems)}


def document(checks: Sequence[ReportCheck]) -> dict[str, Any]:
    """Checks in the reference's form; the worst of them decides."""
    worst = max(checks, key=lambda check: check.exit_code)
    return {
        "format_version": VERIFY_FORMAT,
        "summary": {"ok": worst.exit_code == 0, "reason": worst.reason},
        "results": [check.result() for check in checks],
        "resolution": {"exit_code": worst.exit_code},
    }


def check_one(report: Path, profile: Profile, limits: Policy | None = None) -> ReportCheck:
    """Recompute metric, interval, gates, guards and digests of a report from the records beside it.

    Args:
        report: evaluation.report.json in its place in a run directory or a pack, or the directory that holds it.
        limits: what to judge by; None means the installed limits, with what the deployment's own configuration says
            where the report lies in a run directory.

    Raises:
        MissingFile: there is no such report.
        BadInput: it lies in no run directory and no pack, or not where the plan puts one.
        EvidenceError: the frozen inputs of its campaign cannot be read.
    """
    try:
        return _check(report, profile, limits)
    except MALFORMED as error:
        raise EvidenceError(f"{report}: beside it is content of an unexpected form ({error!r:.200})") from error


def _check(report: Path, profile: Profile, limits: Policy | None) -> ReportCheck:
    path = (report / layout.REPORT if report.is_dir() else report).absolute()
    if not path.is_file():
        raise MissingFile(f"{report}: no such report", "name an evaluation.report.json or its directory")
    root, files, where, own = _surroundings(path)
    campaign, inputs = open_campaign(files, where, limits or own)
    expected = {pack_name(place): (key, place) for key, place in expected_reports(campaign.plan).items()}
    name = path.relative_to(root).as_posix()
    place = name if where_is_pack(root) else pack_name(name)
    if place not in expected:
        raise BadInput(f"{report}: the plan of {root} asks for no report in this place", "name one that it asks for")
    key, at = expected[place]
    facts = check_model(campaign, campaign.plan.model(key.model), [key.scenario])
    judged = judge_report(campaign, facts, key, at)
    missed = tuple(unmet(parse_json(files[place], name), profile)) if judged.usable else ()
    return ReportCheck(path, judged, (*campaign.other_limits.values(), *inputs, *facts.errors), missed)


def where_is_pack(root: Path) -> bool:
    """Whether a directory is a sealed pack (else a run directory)."""
    return (root / layout.MANIFEST).is_file()


def _surroundings(path: Path) -> tuple[Path, Files, Layout, Policy | None]:
    """The pack or run directory around a report: root, files by their names in a pack, layout, own limits."""
    for root in path.parents:
        if where_is_pack(root):
            found = inventory.load(root).files
            if layout.MANIFEST not in found:
                raise EvidenceError(f"{root / layout.MANIFEST} is no file that can be used")
            stated = entry(parse_json(found[layout.MANIFEST], layout.MANIFEST), "layout")
            return root, found, layout.LAYOUTS["v2" if stated == "v2" else "v1"], None
        run = RunDir(root)
        if run.plan.is_file():
            files = Files(content=dict(contents(run, load_plan(run))))
            return root, files, layout.LAYOUTS["v1"], own_limits(run)
    raise BadInput(f"{path} lies in no run directory and no pack", "check reports where they were made")

"""Which files of a run directory go into a pack, and under which names. Weights and token ids never do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evpack.errors import BadInput, IntegrityError
from evpack.files import parse_json, portable, pretty_json
from evpack.pack import layout
from evpack.plan.model import CampaignPlan, StepType
from evpack.rundir import RunDir

_WITH_PATHS = frozenset({layout.PLAN, layout.SETTINGS})
_DERIVED = frozenset({layout.VERIFIED})
"""Names beside a report that the pack's own files take."""


def collect(run: RunDir, plan: CampaignPlan) -> Iterator[tuple[str, bytes]]:
    """Evidence of a campaign: names in the pack and bytes, one file at a time.

    Frozen inputs, provenance and the final verdict must be there. Of everything else, what exists is taken as it
    is: what is missing or damaged is the verdict's business. Plan and settings lose the directories of this machine.

    Raises:
        BadInput: when something without which a pack says nothing is missing.
    """
    found = {name for name, path in _candidates(run, plan) if _is_there(run, path)}
    for name, mend in {
        layout.SETTINGS: "plan the campaign again",
        layout.POLICY: "plan the campaign again",
        layout.SCENARIOS: "plan the campaign again",
        layout.SOURCE: "provide state/source_repo.json (source provenance of the campaign)",
        layout.VERDICT: "run the step compile_verdict first",
        layout.VERDICT_TEXT: "run the step compile_verdict first",
    }.items():
        if name not in found:
            raise BadInput(f"{run.root} cannot be packed: {Path(name).name} is missing", mend)
    yield from contents(run, plan)


def contents(run: RunDir, plan: CampaignPlan) -> Iterator[tuple[str, bytes]]:
    """What `collect` gives, as far as it is there.

    Raises:
        IntegrityError: for a link: what a step left may lead to any file of this machine, which must not leave it.
    """
    for name, path in _candidates(run, plan):
        if not _is_there(run, path):
            continue
        data = path.read_bytes()
        yield name, pretty_json(portable(parse_json(data, str(path)))) if name in _WITH_PATHS else data


def _is_there(run: RunDir, path: Path) -> bool:
    if path.is_file() and run.first_link(path):
        raise IntegrityError(f"{path} is, or lies behind, a link; a pack holds what the campaign wrote", "remove it")
    return path.is_file()


def _candidates(run: RunDir, plan: CampaignPlan) -> Iterator[tuple[str, Path]]:
    yield layout.PLAN, run.plan
    yield layout.LANE_CHANGES, run.lane_changes
    yield layout.SETTINGS, run.settings
    yield layout.POLICY, run.policy
    yield layout.SCENARIOS, run.scenarios
    yield layout.TUNED, run.tuned_edit_params
    yield layout.REVISIONS, run.model_revisions
    yield layout.SOURCE, run.source_repo
    yield layout.VERDICT, run.final_verdict
    yield layout.VERDICT_TEXT, run.final_verdict.with_suffix(".txt")
    for name in layout.SUMMARIES:
        yield name, run.reports / Path(name).name
    for path in _listed(run.analysis, ".json"):
        yield f"results/{path.name}", path
    for path in (*_listed(run.presets, ".yaml"), *_listed(run.presets, ".json")):
        yield f"state/presets/{path.name}", path
    for model in plan.models:
        yield from _of_model(run, plan, model.name)


def _of_model(run: RunDir, plan: CampaignPlan, name: str) -> Iterator[tuple[str, Path]]:
    model = run.model(name)
    yield layout.model_state(name, "model_profile.json"), model.profile
    yield layout.model_state(name, "schedule.json"), model.windows / "schedule.json"
    for path in _listed(model.calibration, ".json"):
        yield f"reports/{name}/calibration/{path.name}", path
    for step in plan.steps_of(StepType.CALIBRATE, model=name):
        for number in step.runs:
            for path in _listed(model.calibration / f"run_{number}", ".json"):
                yield f"reports/{name}/calibration/run_{number}/{path.name}", path
    for step in plan.steps_of(StepType.EVALUATE, model=name):
        scenario = plan.scenario(str(step.scenario))
        variant = model.variant(scenario.id) / "variant.json"
        yield layout.model_state(name, f"variants/{scenario.id}.json"), variant
        for number in step.runs:
            target = layout.report_dir(name, scenario.id, scenario.category, number)
            for path in _listed(model.report(scenario.id, scenario.category, number), ".json"):
                if path.name not in _DERIVED:
                    yield f"{target}/{path.name}", path


def _listed(directory: Path, suffix: str) -> list[Path]:
    """Files of a directory with a suffix, sorted; names that no pack may hold (editor leftovers) are passed over."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.suffix == suffix and layout.name_problem(p.name) is None)

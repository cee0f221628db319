"""What is refused before anything is written or computed. One function per question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from evpack.catalog import supported
from evpack.catalog.edit_spec import EditSpecError, ResolvedEdit, parse_edit_spec, parse_scope, resolve_edit
from evpack.catalog.scenarios import EditGeneration, ErrorGeneration, Scenario
from evpack.catalog.tuned import TunedParams
from evpack.errors import BadInput
from evpack.plan.disk import check_writable
from evpack.plan.sources import Source
from evpack.rundir import RunDir, model_name
from evpack.settings import Settings

CheckSource = Callable[[Settings, Iterable[Path]], object]
"""Refuses a text that cannot give the windows (`evpack.data.preflight.check_source`, a room above this one).

Takes the settings and the checkpoint directories; raises BadInput.
"""

CheckPack = Callable[[Settings, RunDir], object]
"""Refuses what would keep the pack from being sealed (`evpack.steps.build_pack.check_pack`); raises BadInput."""

_FRESH = frozenset({"analysis", "state", "logs", "archive"})
"""What a run directory without a plan may hold: what a killed plan or a scheduler left, campaigns that made way."""


def check_settings(settings: Settings) -> None:
    """Refuse settings that ask for something this version cannot do, rather than ignore them.

    Raises:
        BadInput: naming the variable, its value and what can be done.
    """
    wanted = (
        ("INVARLOCK_DATASET", {settings.dataset}, supported.SUPPORTED_PROVIDERS),
        ("PACK_GUARDS_ORDER", set(settings.guards_order), supported.SUPPORTED_GUARDS),
        ("PACK_BASELINE_STORAGE_MODE", {settings.baseline_storage_mode}, supported.SUPPORTED_STORAGE),
        ("INVARLOCK_HF_TRUST_REMOTE_CODE", {str(settings.hf_trust_remote_code)}, {"False"}),
    )
    for name, values, known in wanted:
        if not values <= known:
            raise BadInput(
                f"{name}={', '.join(sorted(values - known))} is not supported", f"use {', '.join(sorted(known))}"
            )
    if settings.drift_calibration_runs == 0 and not settings.reuses_presets:
        raise BadInput(
            "DRIFT_CALIBRATION_RUNS=0: guard calibration disabled",
            "set it to 1 or more, or reuse presets with PACK_CALIBRATION_PRESET_DIR or _FILE",
        )


def check_kinds(scenarios: Sequence[Scenario]) -> None:
    """Refuse scenarios with edits or injections that this version cannot make, before any is parsed further.

    Raises:
        BadInput: listing them.
    """
    wrong = []
    for scenario in scenarios:
        if isinstance(scenario.generation, ErrorGeneration):
            kind, known = scenario.generation.error_type, supported.SUPPORTED_FAULTS
        else:
            kind, known = parse_edit_spec(scenario.generation.edit_spec).edit_type, supported.SUPPORTED_EDITS
        if kind not in known:
            wrong.append(f"{scenario.id} ({kind})")
    if wrong:
        able = ", ".join(sorted(supported.SUPPORTED_EDITS | supported.SUPPORTED_FAULTS))
        raise BadInput("scenarios that cannot be made: " + ", ".join(wrong), f"choose among {able} with `scenarios`")


def resolve_edits(
    sources: Sequence[Source], scenarios: Sequence[Scenario], tuned: TunedParams
) -> dict[tuple[str, str], ResolvedEdit]:
    """Every edit of the campaign by (model id, scenario id); clean ones without selected parameters say so by status.

    Raises:
        BadInput: a wrong spec, or wrong parameters.
    """
    resolved: dict[tuple[str, str], ResolvedEdit] = {}
    for source in sources:
        for scenario in scenarios:
            if not isinstance(scenario.generation, EditGeneration):
                continue
            spec = parse_edit_spec(scenario.generation.edit_spec)
            entry = tuned.entry(spec.edit_type, source.id, model_name(source.id)) if spec.clean else None
            status = "missing" if entry is None else str(entry.get("status", "missing"))
            if spec.clean and status != "selected":
                reason = str((entry or {}).get("reason", ""))
                resolved[source.id, scenario.id] = ResolvedEdit(
                    spec=spec.text, edit_type=spec.edit_type, scope=spec.scope, status=status, reason=reason
                )
                continue
            try:
                resolved[source.id, scenario.id] = resolve_edit(spec, entry, version=scenario.generation.version)
            except EditSpecError as error:
                raise BadInput(f"scenario {scenario.id}, model {source.id}: {error.what}", error.mend) from error
    return resolved


def check_selected(edits: Mapping[tuple[str, str], ResolvedEdit]) -> None:
    """Refuse clean edits without selected parameters.

    Args:
        edits: as `resolve_edits` gives them.

    Raises:
        BadInput: listing them as ``model:type:status``.
    """
    missing = [
        f"{model}:{edit.edit_type}:{edit.status}" for (model, _), edit in edits.items() if edit.status != "selected"
    ]
    if missing:
        raise BadInput(
            "clean edits without tuned parameters: " + ", ".join(missing),
            "measure them with `evpack tune` for the file of PACK_TUNED_EDIT_PARAMS_FILE, or leave clean edits out "
            "(CLEAN_EDIT_RUNS=0)",
        )


def check_edits_fit(sources: Sequence[Source], edits: Mapping[tuple[str, str], ResolvedEdit]) -> None:
    """Refuse edits of blocks that a model does not have, or of a rank that leaves every matrix as it is.

    Only what the configuration tells is checked; each create step holds its edit against the tensors.

    Args:
        edits: as `resolve_edits` gives them.

    Raises:
        BadInput: naming scenario, model and value.
    """
    for source in sources:
        for (model, scenario), edit in edits.items():
            if model != source.id or edit.status != "selected":
                continue
            where = f"scenario {scenario}, model {model}: edit {edit.spec!r} (scope {edit.scope})"
            scope = parse_scope(edit.scope)
            if source.blocks is not None and scope.layers and scope.layers[-1] >= source.blocks:
                raise BadInput(
                    f"{where} names layer {scope.layers[-1]}, but the model's blocks are 0 to {source.blocks - 1}",
                    "name a layer that exists",
                )
            if scope.below == 0 and not scope.layers:
                raise BadInput(f"{where} covers no layer", "write @layers=1 or more: all layers below that number")
            if source.width is not None and edit.rank is not None and edit.rank >= source.width:
                raise BadInput(
                    f"{where} has rank {edit.rank}, but no matrix of the model has more than {source.width}",
                    f"give a rank below {source.width}",
                )


def check_names(sources: Sequence[Source]) -> None:
    """Refuse two models that would share a directory.

    Raises:
        BadInput: naming both, or an id that gives no usable name.
    """
    owner: dict[str, str] = {}
    for source in sources:
        name = model_name(source.id)
        if name in owner:
            raise BadInput(
                f"models {owner[name]!r} and {source.id!r} would both be stored as {name!r}",
                "leave one out, or rename its directory",
            )
        owner[name] = source.id


def check_run_dir(run: RunDir) -> None:
    """Refuse a run directory that cannot be written or holds something else.

    Raises:
        BadInput: naming the directory.
    """
    check_writable(run.root)
    if run.root.is_dir():
        foreign = sorted(path.name for path in run.root.iterdir() if path.name not in _FRESH)
        if foreign:
            raise BadInput(
                f"run directory {run.root} holds no plan but other things ({foreign[0]}, ...)",
                "choose an empty or new directory",
            )

"""derive_preset: from calibration runs to the preset that evaluations use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evpack.catalog.policy import Policy
from evpack.data.windows import BASE_SEED
from evpack.files import read_json, write_json
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import layout
from evpack.presets.derive import derive, read_preset
from evpack.presets.guard_sections import edit_variant, guard_sections
from evpack.publishing import write_atomic
from evpack.rundir import ModelDir
from evpack.steps.base import StepContext, log
from evpack.steps.guarding import baseline_spectral_file
from evpack.steps.subject import measured_noop_shift, model_of


def derive_preset(ctx: StepContext) -> list[Path]:
    """Publish ``presets/calibrated_preset_<model>.yaml``, a variant of it for each type of clean edit
    (``…__<edit type>.yaml``), and calibration_stats.json beside the calibration runs.

    Only calibration runs count, not further runs that were scored for evaluations to pair with. A reused preset is
    published as it was frozen when the campaign was planned, and there are no statistics then.

    Raises:
        EvidenceError: when a calibration report is malformed or the runs do not agree.
    """
    model, place = model_of(ctx)
    target, count = ctx.run.preset(model.name), ctx.settings.calibration_runs
    if ctx.settings.reuses_presets:
        reused = read_json(ctx.run.reused_presets)[model.name]
        write_atomic(target, reused["text"].encode("utf-8"))
        log.info("preset of %s taken from %s", model.label, reused["file"])
        return [target, *_variants(ctx, model.name, read_preset(target))]
    reports = [read_json(place.calibration / f"run_{k}" / layout.BASELINE_REPORT) for k in range(1, count + 1)]
    preset, stats = derive(
        reports,
        baseline=place.baseline.relative_to(ctx.run.root).as_posix(),
        guards_order=ctx.settings.guards_order,
        seed=BASE_SEED,
        noop_shift=measured_noop_shift(place),
    )
    policy = Policy.parse(ctx.run.policy.read_bytes(), str(ctx.run.policy))
    preset["guards"] |= guard_sections(ctx.settings.guards_order, policy, _matrices(place))
    statistics = place.calibration / "calibration_stats.json"
    write_json(statistics, stats)
    write_atomic(target, yaml.safe_dump(preset, sort_keys=False).encode("utf-8"))
    log.info("preset of %s from %d runs, drift %.4f", model.label, len(reports), stats["drift"]["mean"])
    return [target, *_variants(ctx, model.name, preset), statistics]


def _variants(ctx: StepContext, model: str, preset: Mapping[str, Any]) -> list[Path]:
    """Publish the preset's variants for the types of the model's clean edits."""
    written = []
    for edit_type in sorted({edit.edit_type for edit in ctx.plan.clean_edits(model).values()}):
        written.append(ctx.run.preset(model, edit_type))
        write_atomic(written[-1], yaml.safe_dump(edit_variant(preset, edit_type), sort_keys=False).encode("utf-8"))
    return written


def _matrices(place: ModelDir) -> SpectralRecords | None:
    """Figures of the baseline's matrices, None where calibration left none (the spectral guard is off)."""
    file = baseline_spectral_file(place)
    return SpectralRecords.parse(file.read_bytes(), file.name) if file.is_file() else None

"""derive_preset: from calibration runs to the preset that evaluations use."""

from __future__ import annotations

from pathlib import Path

import yaml

from evpack.data.windows import BASE_SEED
from evpack.files import read_json, write_atomic, write_json
from evpack.presets.derive import derive
from evpack.steps.base import StepContext, log
from evpack.steps.subject import model_of


def derive_preset(ctx: StepContext) -> list[Path]:
    """Publish ``presets/calibrated_preset_<model>.yaml`` and calibration_stats.json beside the calibration runs.

    Only the plan's calibration runs count, not further runs that were scored for evaluations to pair with.

    Raises:
        EvidenceError: when a calibration report is malformed or the runs do not agree.
    """
    model, place = model_of(ctx)
    count = ctx.settings.drift_calibration_runs
    reports = [read_json(place.calibration / f"run_{k}" / "baseline_report.json") for k in range(1, count + 1)]
    preset, stats = derive(
        reports,
        baseline=place.baseline.relative_to(ctx.run.root).as_posix(),
        guards_order=ctx.settings.guards_order,
        seed=BASE_SEED,
    )
    target, statistics = ctx.run.preset(model.name), place.calibration / "calibration_stats.json"
    write_json(statistics, stats)
    write_atomic(target, yaml.safe_dump(preset, sort_keys=False).encode("utf-8"))
    log.info("preset of %s from %d runs, drift %.4f", model.label, len(reports), stats["drift"]["mean"])
    return [target, statistics]

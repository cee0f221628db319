"""A reused preset is published as it was frozen when the campaign was planned."""

from __future__ import annotations

from pathlib import Path

from evpack.files import write_json
from evpack.home import Home
from evpack.plan.model import CampaignPlan, ModelPlan, ModelSource, StepPlan, StepType
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.derive_preset import derive_preset

TEXT = "# by hand\n_calibration_meta: {model_name: tiny}\ndataset: {}\nguards: {order: [rmt]}\n"


def test_the_frozen_text_is_published_byte_for_byte(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    file = tmp_path / "gone.yaml"  # may be gone by now
    write_json(run.reused_presets, {"tiny": {"file": str(file), "sha256": "0" * 64, "text": TEXT}})
    settings = Settings(calibration_preset_file=str(file))
    step = StepPlan(id="tiny.derive_preset", type=StepType.DERIVE_PRESET, model="tiny")
    source = ModelSource(kind="local", path="/models/tiny")
    model = ModelPlan(id="tiny", label="tiny", name="tiny", source=source, weights_gb=1, devices=0, lane="l", batch=1)
    plan = CampaignPlan(
        suite="fixture",
        created_at="2026-01-01T00:00:00Z",
        evpack_version="0",
        settings_digest=settings.digest(),
        models=(model,),
        scenarios=(),
        steps=(step,),
    )
    published = derive_preset(StepContext(run, plan, settings, step, Home(tmp_path / "home")))
    assert published == [run.preset("tiny")]
    assert published[0].read_text() == TEXT

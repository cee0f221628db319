"""A reused preset is published as it was frozen when the campaign was planned."""

from __future__ import annotations

from pathlib import Path

from evpack.files import write_json
from evpack.home import Home
from evpack.plan.model import StepPlan, StepType
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.derive_preset import derive_preset
from tests.plans import campaign_plan, model_plan

TEXT = "# by hand\n_calibration_meta: {model_name: tiny}\ndataset: {}\nguards: {order: [rmt]}\n"


def test_the_frozen_text_is_published_byte_for_byte(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    file = tmp_path / "gone.yaml"  # may be gone by now
    write_json(run.reused_presets, {"tiny": {"file": str(file), "sha256": "0" * 64, "text": TEXT}})
    settings = Settings(calibration_preset_file=str(file))
    step = StepPlan(id="tiny.derive_preset", type=StepType.DERIVE_PRESET, model="tiny")
    plan = campaign_plan([step], settings, models=(model_plan("tiny"),))
    published = derive_preset(StepContext(run, plan, settings, step, Home(tmp_path / "home")))
    assert published == [run.preset("tiny")]
    assert published[0].read_text() == TEXT

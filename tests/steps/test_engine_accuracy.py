"""A campaign that asks for accuracy: right predictions of both sides are counted in the passes that give the losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_engine_steps import CLEAN, DOWN, EMBEDDING, FAULT, WORDS, Campaign, nan, records_of, source, text  # noqa: F401

from evpack.data.windows import WindowSet
from evpack.plan.model import StepType
from evpack.steps.calibrate import calibrate
from evpack.steps.derive_preset import derive_preset
from evpack.steps.setup_baseline import setup_baseline


@pytest.fixture
def asked(tmp_path: Path, source: Path, text: Path) -> Campaign:  # noqa: F811
    campaign = Campaign(tmp_path, source, text)
    setup_baseline(campaign.context(StepType.SETUP_BASELINE, accuracy=True))
    calibrate(campaign.context(StepType.CALIBRATE, accuracy=True))
    derive_preset(campaign.context(StepType.DERIVE_PRESET, accuracy=True))
    return campaign


def test_counts_of_the_baseline_equal_a_plain_forward_loop(asked: Campaign) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(asked.source, dtype=torch.float32).eval()
    tokens = WindowSet.load(asked.model.windows).tokens
    for window in records_of(asked.model.calibration / "run_1").windows:
        ids = torch.from_numpy(tokens[window.id]).long()[None]
        with torch.no_grad():
            likeliest = model(input_ids=ids).logits[0, :-1].argmax(-1)
        assert window.correct == int((likeliest == ids[0, 1:]).sum())


def test_reports_hold_the_change_and_a_broken_subject_is_rejected(asked: Campaign) -> None:
    def unused_row(tensor: Any) -> Any:
        tensor[WORDS] += 1
        return tensor

    asked.variant(CLEAN, {EMBEDDING: unused_row}, declared=True)
    for report in asked.evaluate(CLEAN, accuracy=True):
        (metric,) = report["secondary_metrics"]
        assert (metric["delta_pp"], metric["ci"], metric["outcome"]) == (0.0, [0.0, 0.0], "accept")
        assert metric["examples"] == {"used": 28, "required": 200, "ok": False}
        assert report["validation"]["primary_metric_acceptable"] is False
    asked.variant(FAULT, {DOWN: nan})
    (metric,) = asked.evaluate(FAULT, accuracy=True)[0]["secondary_metrics"]
    assert (metric["outcome"], metric["delta_pp"], metric["final"]) == ("reject", None, None)

"""Who is at fault when an evaluation goes wrong: a subject gets its report, files and machine stop the step."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_engine_steps import (  # noqa: F401 - fixtures
    DOWN,
    EMBEDDING,
    FAULT,
    WORDS,
    Campaign,
    nan,
    prepared,
    records_of,
    source,
    text,
)

from evpack.errors import CheckpointError, OutOfMemory
from evpack.steps import trial


@pytest.fixture
def campaign(prepared: Path, tmp_path: Path, source: Path, text: Path) -> Campaign:  # noqa: F811
    """A campaign whose baseline is set up, calibrated and has its preset."""
    shutil.copytree(prepared, tmp_path / "campaign", symlinks=True)
    return Campaign(tmp_path / "campaign", source, text)


def test_a_subject_with_nan_gets_its_report(campaign: Campaign) -> None:
    campaign.variant(FAULT, {DOWN: nan})
    (report,) = campaign.evaluate(FAULT)
    metric = report["primary_metric"]
    assert (metric["outcome"], metric["degraded"], metric["ratio_vs_baseline"]) == ("reject", True, None)
    assert report["invariants"]["status"] == "fail"
    assert [f["type"] for f in report["invariants"]["failures"]] == ["non_finite_tensor"]
    assert [f["tensors"] for f in report["invariants"]["undeclared"]] == [[DOWN]]
    records = records_of(campaign.model.report("fault", "error_injection", 1))
    assert {w.reason for w in records.windows} == {"non_finite_loss:nan"}


def test_a_parameter_left_to_chance_is_never_scored(campaign: Campaign) -> None:
    campaign.variant(FAULT, {}, removed=(DOWN,))
    (report,) = campaign.evaluate(FAULT)
    assert report["primary_metric"]["outcome"] == "reject"
    assert report["primary_metric"]["degraded_reason"].endswith("unexplained_keys:1")
    kinds = {f["type"] for f in report["invariants"]["failures"]}
    assert kinds == {"missing_tensor", "unexplained_keys"}
    assert report["validation"]["invariants_pass"] is False


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "no_such_model"}, "load_failed:CheckpointError"),
        ({"pad_token_id": WORDS + 9}, "load_failed:AssertionError"),
        ({"_attn_implementation": "flash_attention_2"}, "load_failed:"),
        ({"attn_implementation": "eager"}, "scored_in_another_way: attention eager, the baseline's sdpa"),
        ({"num_attention_heads": 3}, "failed:"),
    ],
)
def test_whatever_the_library_makes_of_a_configuration_the_report_says_it(
    campaign: Campaign, config: dict[str, Any], said: str
) -> None:
    campaign.variant(FAULT, {DOWN: lambda t: t * 2}, config=config)
    (report,) = campaign.evaluate(FAULT)
    assert report["primary_metric"]["outcome"] == "reject"
    assert said in report["primary_metric"]["degraded_reason"]
    assert "load_failed" in {f["type"] for f in report["invariants"]["failures"]}
    records = records_of(campaign.model.report("fault", "error_injection", 1))
    assert all(window.nll_sum is None and said in str(window.reason) for window in records.windows)


@pytest.mark.parametrize(
    "error", [OutOfMemory("none left"), OSError(errno.EIO, "lost"), MemoryError(), RuntimeError("CUDA error: x")]
)
def test_what_the_machine_does_is_not_the_subjects_fault(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    campaign.variant(FAULT, {DOWN: lambda t: t * 2})
    monkeypatch.setattr(trial.Bench, "load", broken)
    with pytest.raises(type(error)):
        campaign.evaluate(FAULT)
    assert not campaign.model.report("fault", "error_injection", 1).exists()


def test_a_vocabulary_too_small_for_the_windows_is_the_subjects_fault(campaign: Campaign) -> None:
    cut = {name: lambda t: t[:5].clone() for name in (EMBEDDING, "lm_head.weight")}
    campaign.variant(FAULT, cut, config={"vocab_size": 5})
    (report,) = campaign.evaluate(FAULT)
    assert "vocabulary_too_small: token" in report["primary_metric"]["degraded_reason"]
    assert {f["type"] for f in report["invariants"]["failures"]} == {"tokenizer_mismatch"}


def test_damaged_files_stop_the_step_and_are_named(campaign: Campaign) -> None:
    campaign.variant(FAULT, {DOWN: lambda t: t * 2})
    delta = campaign.model.variant("fault") / "delta.safetensors"
    data = bytearray(delta.read_bytes())
    data[-1] ^= 1
    delta.write_bytes(data)
    with pytest.raises(CheckpointError, match=DOWN):
        campaign.evaluate(FAULT)
    assert not campaign.model.report("fault", "error_injection", 1).exists()


def test_a_baseline_replaced_behind_its_link_stops_the_step(campaign: Campaign, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    campaign.variant(FAULT, {DOWN: lambda t: t * 2})
    link = campaign.model.baseline / "model.safetensors"
    tensors = load_file(link)
    link.unlink()
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, link, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not those recorded"):
        campaign.evaluate(FAULT)

"""Presets of an earlier campaign in place of calibration runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evpack.catalog.config import policy_overrides
from evpack.catalog.policy import resolve_policy
from evpack.errors import BadInput, MissingFile
from evpack.files import read_json
from evpack.guards.spectral_records import SpectralRecords
from evpack.home import Home
from evpack.plan.campaign import build_plan, plan_campaign
from evpack.presets.guard_sections import guard_sections
from evpack.rundir import RunDir
from evpack.settings import Settings

NOW = "2026-11-23T12:00:00Z"

MakeSettings = Callable[..., Settings]
MakeModel = Callable[..., Path]


def preset(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """What a campaign of `make_settings` would have derived."""
    content: dict[str, Any] = {
        "_calibration_meta": {"model_name": name, "tier": "balanced"},
        "dataset": {"provider": "text", "seq_len": 512, "stride": 256, "preview_n": 32, "final_n": 32},
        "guards": {"order": ["invariants"]},
    }
    for section, values in changes.items():
        content[section] |= values
    return content


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


def test_a_directory_gives_each_model_its_preset_and_the_plan_freezes_it(
    make_settings: MakeSettings, make_model: MakeModel, home: Home, tmp_path: Path
) -> None:
    directory = tmp_path / "presets"
    first = write(directory / "calibrated_preset_a.yaml", preset("a"))
    write(directory / "calibrated_preset_a.json", {})
    second = directory / "calibrated_preset_b.json"
    second.write_text(json.dumps(preset("b"), indent="\t"))
    settings = make_settings(
        models=[str(make_model("a")), str(make_model("b"))],
        calibration_preset_dir=str(directory),
        drift_calibration_runs=0,
    )
    run = RunDir(tmp_path / "run")
    plan = plan_campaign(run, settings, home, source_repo={}, check_source=lambda *_: None)
    frozen = read_json(run.reused_presets)
    for name, file in (("a", first), ("b", second)):
        assert frozen[name]["file"] == str(file)
        assert yaml.safe_load(frozen[name]["text"]) == preset(name), "tabs of JSON are none of YAML"
    assert plan.step("a.calibrate").runs == (1, 2, 3), "baseline runs that the clean runs pair with"


def test_without_presets_nothing_is_frozen(make_settings: MakeSettings, home: Home) -> None:
    assert "reused_presets.json" not in build_plan(make_settings(), home, NOW).documents


def test_a_reused_preset_replaces_calibration_runs(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    file = write(tmp_path / "presets" / "any.yml", preset())
    settings = make_settings(calibration_preset_file=str(file), calibration_preset_dir="/nowhere", clean_edit_runs=2)
    assert settings.drift_calibration_runs == 3
    assert (settings.calibration_runs, settings.scheduled_runs) == (0, 2)
    plan = build_plan(settings, home, NOW).plan
    assert plan.step("tiny.calibrate").runs == (1, 2)
    assert plan.step("tiny.derive_preset").needs == ("tiny.calibrate",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_calibration_meta": {"model_name": "other"}}, "model is 'other', this campaign's is 'tiny'"),
        ({"_calibration_meta": {"tier": "aggressive"}}, "tier is 'aggressive', this campaign's is 'balanced'"),
        ({"dataset": {"provider": "wikitext2"}}, "provider is 'wikitext2', this campaign's is 'text'"),
        ({"dataset": {"seq_len": 64}}, "seq_len is 64, this campaign's is 512"),
        ({"dataset": {"seq_len": 512, "stride": 512}}, "stride is 512, this campaign's is 256"),
        ({"dataset": {"final_n": None}}, "final windows is None, this campaign's is 32"),
        ({"guards": {"order": ["rmt"]}}, r"order of guards is \('rmt',\), this campaign's is \('invariants',\)"),
    ],
)
def test_a_preset_of_something_else_is_refused_with_both_values(
    make_settings: MakeSettings, home: Home, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "presets" / "p.yaml", preset(**changes))
    with pytest.raises(BadInput, match=f"p.yaml.*{message}"):
        build_plan(make_settings(calibration_preset_file=str(file)), home, NOW)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.yaml", "[", "not plain YAML"),
        ("p.yaml", "- 1", r"it is \[1\], not a mapping"),
        ("p.yaml", "{_calibration_meta: {}, dataset: {}, guards: 3}", "guards is 3, not a mapping"),
        ("p.yaml", "guards: {order: [rmt]}", "_calibration_meta is None, not a mapping"),
        ("p.yaml", "a: &x 1\nb: *x", "aliases"),
        ("p.json", "{", "not JSON"),
    ],
)
def test_damaged_presets_name_the_file(
    make_settings: MakeSettings, home: Home, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=f"{name}.*{message}"):
        build_plan(make_settings(calibration_preset_file=str(tmp_path / name)), home, NOW)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"guards": {"rmt": {"epsilon": 0}}}, "guards.rmt.epsilon is 0, in force is 0.0021"),
        ({"guards": {"spectral": {"max_caps": 99}}}, "guards.spectral.max_caps is 99, in force is 5"),
        ({"guards": {"spectral": {"ratio_cap": float("inf")}}}, "guards.spectral.ratio_cap is inf"),
        ({"guards": {"spectral": {"stable_rank": {"warn_ratio": 9}}}}, "guards.spectral.stable_rank.warn_ratio is 9"),
        ({"guards": {"rmt": None}}, "guards.rmt is None, which is no limit"),
        ({"guards": {"rmt": {"unknown": 1}}}, "guards.rmt.unknown is 1, which is no limit"),
        ({"primary_metric": {"drift_band": [0.95, 2]}}, "primary_metric.drift_band.max is 2, in force is 1.05"),
        ({"primary_metric": 3}, "primary_metric is 3, which is no limit"),
    ],
)
def test_limits_that_are_not_in_force_are_refused(
    make_settings: MakeSettings, home: Home, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    content = preset()
    for section, values in changes.items():
        content[section] = {**content[section], **values} if section in content else values
    file = write(tmp_path / "presets" / "p.yaml", content)
    with pytest.raises(BadInput, match=f"p.yaml.*its {name}") as caught:
        build_plan(make_settings(calibration_preset_file=str(file)), home, NOW)
    assert "PACK_CONFIG_FILE" in caught.value.mend


def test_what_a_campaign_derived_is_taken_also_with_limits_of_its_own(
    make_settings: MakeSettings, home: Home, tmp_path: Path
) -> None:
    own = write(tmp_path / "own.yaml", {"guards": {"spectral": {"max_caps": 8}}})
    settings = make_settings(config_file=str(own))
    policy = resolve_policy("balanced", "small", policy_overrides(settings))
    sections = guard_sections(("spectral", "rmt", "variance"), policy, SpectralRecords.model_construct(matrices={}))
    band = {"drift_band": dict(zip(("min", "max"), policy.drift_band, strict=True))}
    content = preset(guards=sections) | {"primary_metric": band}
    file = write(tmp_path / "presets" / "p.yaml", content)
    reusing = make_settings(
        models=settings.models, config_file=str(own), calibration_preset_file=str(file), clean_edit_runs=2
    )
    assert "max_caps: 8" in build_plan(reusing, home, NOW).documents["reused_presets.json"]["tiny"]["text"]


def test_a_preset_may_include_files_beside_it_in_any_encoding_of_yaml(
    make_settings: MakeSettings, make_model: MakeModel, home: Home, tmp_path: Path
) -> None:
    content = preset()
    write(tmp_path / "presets" / "dataset.yaml", content.pop("dataset"))
    text = yaml.safe_dump(content) + "dataset: !include dataset.yaml\n"
    file = tmp_path / "presets" / "p.yaml"
    models = [str(make_model())]
    for encoding in ("utf-8", "utf-16"):
        file.write_bytes(text.encode(encoding))
        draft = build_plan(make_settings(models=models, calibration_preset_file=str(file)), home, NOW)
        assert yaml.safe_load(draft.documents["reused_presets.json"]["tiny"]["text"]) == preset()
    outside = write(tmp_path / "dataset.yaml", preset()["dataset"])
    file.write_text(yaml.safe_dump(content) + f"dataset: !include {outside}\n")
    with pytest.raises(BadInput, match="leaves the configuration's directory"):
        build_plan(make_settings(models=models, calibration_preset_file=str(file)), home, NOW)


def test_missing_presets_are_named(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="holds no calibrated_preset_tiny"):
        build_plan(make_settings(calibration_preset_dir=str(tmp_path)), home, NOW)


def test_no_calibration_at_all_is_refused(make_settings: MakeSettings, home: Home) -> None:
    with pytest.raises(BadInput, match="guard calibration disabled") as caught:
        build_plan(make_settings(drift_calibration_runs=0), home, NOW)
    assert "PACK_CALIBRATION_PRESET_DIR" in caught.value.mend

"""Limits from configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest

from evpack.catalog.config import policy_overrides
from evpack.catalog.policy import resolve_policy
from evpack.errors import BadInput, MissingFile
from evpack.settings import Settings
from evpack.settings_resolve import resolve


def settings(**values: object) -> Settings:
    return Settings.model_validate({"profile": "small"} | values)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_files_nothing_is_overridden(tmp_path: Path) -> None:
    assert policy_overrides(settings()) == {}
    assert policy_overrides(settings(config_root=str(tmp_path))) == {}


def test_the_file_stands_above_the_profile_and_both_above_their_defaults(tmp_path: Path) -> None:
    write(tmp_path / "runtime" / "profiles" / "ci.yaml", "primary_metric: {drift_band: [0.5, 2.0]}")
    write(
        tmp_path / "runtime" / "profiles" / "small.yaml",
        "defaults: !include ../base.yaml\nprimary_metric: {acceptance_range: {min: 0.9, max: 1.2}}",
    )
    write(tmp_path / "runtime" / "base.yaml", "primary_metric: {acceptance_range: [0.1, 9], drift_band: [0.8, 1.3]}")
    file = write(tmp_path / "own.yaml", "primary_metric: {drift_band: {max: 1.4}}")
    chosen = settings(config_root=str(tmp_path), config_file=str(file))
    overrides = policy_overrides(chosen)
    assert overrides == {"acceptance_range": {"min": 0.9, "max": 1.2}, "drift_band": {"min": 0.8, "max": 1.4}}
    policy = resolve_policy("balanced", "small", overrides)
    assert policy.acceptance == (0.9, 1.2)
    assert policy.drift_band[1] == 1.4
    assert policy.thresholds["primary_metric.drift_band.max"].origin == "override: configuration"


def test_either_end_of_a_range_is_a_limit_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "runtime/profiles/small.yaml", "primary_metric: {acceptance_range: {max: 1.02}}")
    file = write(tmp_path / "own.yaml", "primary_metric: {acceptance_range: {min: 0.90}}")
    overrides = policy_overrides(settings(config_root=str(tmp_path), config_file=str(file)))
    assert resolve_policy("balanced", "small", overrides).acceptance == (0.90, 1.02)


def test_what_is_left_empty_sets_nothing(tmp_path: Path) -> None:
    for text in ("", "guards:", "primary_metric:", "defaults:\nguards: {rmt: {epsilon: 1e-2}}"):
        overrides = policy_overrides(settings(config_file=str(write(tmp_path / "own.yaml", text))))
        assert overrides == ({"guards.rmt.epsilon": 0.01} if "rmt" in text else {})


def test_limits_of_guards_are_merged_one_by_one(tmp_path: Path) -> None:
    write(
        tmp_path / "base.yaml", "guards: {spectral: {max_caps: 8, stable_rank: {warn_ratio: 0.4}}, rmt: {epsilon: 1}}"
    )
    file = write(tmp_path / "own.yaml", "{defaults: !include base.yaml, guards: {rmt: {epsilon: 0.5}, variance: {}}}")
    overrides = policy_overrides(settings(config_file=str(file)))
    assert overrides == {
        "guards.spectral.max_caps": 8,
        "guards.spectral.stable_rank.warn_ratio": 0.4,
        "guards.rmt.epsilon": 0.5,
    }
    policy = resolve_policy("balanced", "small", overrides)
    assert policy.number("spectral.max_caps") == 8
    assert policy.thresholds["rmt.epsilon"].origin == "override: configuration"
    assert policy.number("rmt.epsilon_rms") == resolve_policy("balanced", "small").number("rmt.epsilon_rms")


def test_variables_name_the_files(tmp_path: Path) -> None:
    file = write(tmp_path / "conf" / "own.yaml", "defaults: !include ../base.yaml")
    write(tmp_path / "base.yaml", "primary_metric: {drift_band: [0.8, 1.3]}")
    environ = {"PACK_CONFIG_FILE": str(file)}
    with pytest.raises(BadInput, match="leaves the configuration's directory"):
        policy_overrides(resolve({}, {}, environ, {}))
    outside = environ | {"INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE": "1"}
    assert policy_overrides(resolve({}, {}, outside, {})) == {"drift_band": {"min": 0.8, "max": 1.3}}
    below = environ | {"INVARLOCK_CONFIG_ROOT": str(tmp_path)}
    assert policy_overrides(resolve({}, {}, below, {})) == {"drift_band": {"min": 0.8, "max": 1.3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {}", "'dataset' cannot be configured here"),
        ("guards: {spectral: {max_kaps: 2}}", "'guards.spectral.max_kaps' cannot be configured here"),
        ("guards: {spectral: {scope: ffn}}", "'guards.spectral.scope' cannot be configured here"),
        ("guards: {rmt: {margin: 2}}", "'guards.rmt.margin' cannot be configured here"),  # nothing reads it
        ("guards: {invariants: {max: 2}}", "'guards.invariants.max' cannot be configured here"),
        ("guards: 2", "'guards' cannot be configured here"),
        ("primary_metric: {ratio_limit: 2}", "'ratio_limit' cannot be configured here"),
        ("primary_metric: 2", "primary_metric is 2, not a mapping"),
        ("defaults: {dataset: {}}", "defaults: 'dataset' cannot"),
        ("- 1", r"is \[1\], not a mapping"),
        ("[", "not plain YAML"),
    ],
)
def test_what_is_no_limit_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=f"own.yaml.*{message}"):
        policy_overrides(settings(config_file=str(write(tmp_path / "own.yaml", text))))


def test_missing_files_and_tiers_of_ones_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="nowhere"):
        policy_overrides(settings(config_root=str(tmp_path / "nowhere")))
    with pytest.raises(MissingFile, match=r"nowhere\.yaml"):
        policy_overrides(settings(config_file=str(tmp_path / "nowhere.yaml")))
    write(tmp_path / "runtime" / "tiers.yaml", "balanced: {}")
    with pytest.raises(BadInput, match="tiers of one's own"):
        policy_overrides(settings(config_root=str(tmp_path)))

"""Limits of configuration files are settled when a campaign is planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evpack.catalog.policy import Policy, resolve_policy
from evpack.errors import BadInput
from evpack.files import canonical_json
from evpack.home import Home
from evpack.plan.campaign import build_plan
from evpack.settings import Settings

NOW = "2026-11-23T12:00:00Z"
MakeSettings = Callable[..., Settings]


def test_plan_and_policy_hold_them(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("primary_metric: {acceptance_range: {min: 0.9, max: 1.25}}")
    draft = build_plan(make_settings(config_file=str(file)), home, NOW)
    assert draft.plan.policy_overrides == {"acceptance_range": {"min": 0.9, "max": 1.25}}
    policy = Policy.parse(canonical_json(draft.documents["policy.json"]))
    assert policy.acceptance == (0.9, 1.25)
    assert policy == resolve_policy("balanced", "small", draft.plan.policy_overrides)
    file.write_text("primary_metric: {acceptance_range: {max: 1.5}}")
    other = build_plan(make_settings(config_file=str(file), models=[draft.plan.models[0].source.path]), home, NOW)
    assert other.plan.digest() != draft.plan.digest()
    assert build_plan(make_settings(models=[draft.plan.models[0].source.path]), home, NOW).plan.policy_overrides == {}


def test_an_impossible_limit_is_refused(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("primary_metric: {drift_band: [1.2, 0.9]}")
    with pytest.raises(BadInput, match="drift band is empty"):
        build_plan(make_settings(config_file=str(file)), home, NOW)

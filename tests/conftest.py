"""Shared set-up: hypothesis profile and an environment without the operator's own settings."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must not depend on variables of the shell they run in."""
    for name in list(os.environ):
        if name.startswith(("PACK_", "INVARLOCK_", "MODEL_", "TASK_TIMEOUT_", "EVPACK_")) or name in (
            "OUTPUT_DIR",
            "NUM_GPUS",
            "GPU_ID_LIST",
        ):
            monkeypatch.delenv(name)

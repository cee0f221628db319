"""Shared set-up: hypothesis profile and an environment without what the operator or the machine set."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

OUTSIDE = ("GIT_", "HF_", "HUGGING_FACE_", "TRANSFORMERS_")
"""Beginnings of variables that lead git and hub clients elsewhere, as in a git hook or beside a mirror."""
for _name in list(os.environ):
    # A proxy would be asked for the loopback interface; colours and widths change what commands print.
    if _name.startswith(OUTSIDE) or _name.lower().endswith("_proxy") or _name in ("FORCE_COLOR", "COLUMNS"):
        del os.environ[_name]
# A hub on this machine answers as soon as it gets the time to: the client's 10 s would count stalls as failures.
os.environ |= {"HF_HUB_ETAG_TIMEOUT": "900", "HF_HUB_DOWNLOAD_TIMEOUT": "900"}
os.umask(0o022)


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must not depend on variables of the shell they run in."""
    for name in list(os.environ):
        if name.startswith(("PACK_", "INVARLOCK_", "MODEL_", "TASK_TIMEOUT_", "EVPACK_")) or name in (
            "OUTPUT_DIR",
            "NUM_GPUS",
            "GPU_ID_LIST",
            "CUDA_VISIBLE_DEVICES",
        ):
            monkeypatch.delenv(name)

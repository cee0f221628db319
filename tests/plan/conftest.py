"""Tiny checkpoints, a home and a text, so that plans can be made without any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evpack.home import Home
from evpack.settings import Settings
from evpack.settings_resolve import resolve

MakeModel = Callable[..., Path]
MakeSettings = Callable[..., Settings]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    def make(name: str = "tiny", rows: int = 8, shards: int = 1, config: dict[str, Any] | None = None) -> Path:
        directory = tmp_path / "checkpoints" / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"vocab_size": 32} if config is None else config))
        weight_map = {}
        for shard in range(shards):
            tensors = {f"t{shard}.big": np.zeros((rows, 4), np.float32), f"t{shard}.small": np.zeros(2, np.float32)}
            save_file(tensors, directory / f"model-{shard}.safetensors")
            weight_map |= dict.fromkeys(tensors, f"model-{shard}.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return directory

    return make


@pytest.fixture
def make_settings(make_model: MakeModel, tmp_path: Path) -> MakeSettings:
    """Settings of a campaign of the core scenarios over one tiny model; keyword arguments are params."""
    tuned = tmp_path / "tuned.json"
    defaults = {
        "quant_rtn": {"status": "selected", "scope": "ffn", "bits": 8, "group_size": 0},
        "fp8_quant": {"status": "selected", "scope": "ffn", "format": "e5m2"},
        "magnitude_prune": {"status": "selected", "scope": "ffn", "sparsity": 0.12},
        "lowrank_svd": {"status": "selected", "scope": "ffn", "rank": 2},
    }
    tuned.write_text(json.dumps({"_meta": {"schema": "tuned_edit_params_v1"}, "models": {}, "defaults": defaults}))

    def make(**params: Any) -> Settings:
        block = {
            "suite": "fixture",
            "dataset": "text",
            "guards_order": "invariants",
            "profile": "small",
            "drift_calibration_runs": 3,
            "min_free_disk_gb": 0,
            "tuned_edit_params_file": str(tuned),
            "num_gpus": 0,
        }
        if "models" not in params:
            params["models"] = [str(make_model())]
        return resolve(params, {}, {}, block)

    return make

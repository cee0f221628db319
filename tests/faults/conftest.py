from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fault_models import FAMILIES

from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import Checkpoint
from evpack.faults import apply_fault

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> Callable[..., Checkpoint]:
    """A checkpoint of given tensors and configuration."""

    def make(tensors: Tensors, **config: Any) -> Checkpoint:
        from safetensors.torch import save_file

        root = tmp_path / "model"
        root.mkdir()
        (root / "config.json").write_text(json.dumps(config))
        save_file(tensors, root / "model.safetensors")
        return Checkpoint(root)

    return make


@pytest.fixture
def inject(tmp_path: Path) -> Callable[..., DeltaCheckpoint]:
    """Make the variant of a fault in a fresh directory."""

    def make(checkpoint: Any, error_type: str, **options: Any) -> DeltaCheckpoint:
        directory = tmp_path / error_type
        directory.mkdir()
        return apply_fault(checkpoint, error_type, directory, scenario="scenario", **options)

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A tiny transformers model of a family as saved in bf16; made once per session."""
    import torch
    import transformers

    made: dict[str, Path] = {}

    def make(family: str) -> Checkpoint:
        if family not in made:
            model_type, options = FAMILIES[family]
            torch.manual_seed(3)
            config = transformers.AutoConfig.for_model(model_type, **options)
            root = tmp_path_factory.mktemp(family)
            transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(root)
            made[family] = root
        return Checkpoint(made[family])

    return make


@pytest.fixture(scope="session")
def text() -> Any:
    """Token ids int32 [3, 16] of the tiny models' vocabulary."""
    import numpy as np

    return np.random.default_rng(5).integers(0, 64, size=(3, 16), dtype=np.int32)

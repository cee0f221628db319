"""The training script on a few sentences and a few steps."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from evpack.assets.demo import demo_pins
from evpack.errors import BadInput
from evpack.files import tree_digests

SCRIPT = Path(__file__).parents[2] / "tools" / "train_fixture.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_fixture", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def speeches(tmp_path: Path) -> Path:
    folder = tmp_path / "speeches"
    folder.mkdir()
    for name in (*demo_pins().text.speeches, "1900-McKinley-1.txt", "1965-Johnson-1.txt", "1994-Clinton-1.txt"):
        (folder / name).write_text(f"My fellow Americans, this is what I said in {name[:4]}. " * 40)
    return folder


def test_no_held_out_speech_and_none_before_the_spoken_age_is_trained_on(script: ModuleType, speeches: Path) -> None:
    training, evaluation = script.split(speeches, script.Recipe())
    assert [path.name for path in training] == ["1965-Johnson-1.txt", "1994-Clinton-1.txt"]
    assert {path.name for path in evaluation} == {n for n in demo_pins().text.speeches if n >= "2018"}


def test_a_directory_without_the_held_out_speeches_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2010-Obama-1"):
        script.split(tmp_path, script.Recipe())


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_an_orthogonal_update_has_singular_values_near_one(script: ModuleType, shape: tuple[int, int]) -> None:
    import torch

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(script.orthogonal(matrix))
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.6


def test_learning_rate_warms_up_and_falls_to_its_last_share(script: ModuleType) -> None:
    recipe = script.Recipe()
    rates = [script.rate_at(step, recipe) for step in range(recipe.steps)]
    assert rates[recipe.warmup - 1] == max(rates) == 1.0
    assert rates[recipe.warmup :] == sorted(rates[recipe.warmup :], reverse=True)
    assert rates[-1] == pytest.approx(recipe.final_rate, abs=1e-3)


def test_same_seed_same_bytes_other_seed_other_bytes(script: ModuleType, speeches: Path, tmp_path: Path) -> None:
    recipe = replace(script.Recipe(), steps=3, warmup=1, vocabulary=300, hidden=16, intermediate=16, layers=1)
    made = []
    for index, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(index)
        out.mkdir()
        made.append((script.build(speeches, out, replace(recipe, seed=seed)), tree_digests(out)))
    (first, files), (_, same), (_, other) = made
    assert files == same
    assert files["model/model.safetensors"] != other["model/model.safetensors"]
    assert files["model/tokenizer.json"] == other["model/tokenizer.json"]
    assert {
        f"{part}/{name}": digest for part in first["files"] for name, digest in first["files"][part].items()
    } == files
    assert math.isfinite(first["measured"]["held_out_perplexity"])
    assert (tmp_path / "0" / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644

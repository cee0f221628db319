from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from evpack.assets import fixture
from evpack.assets.demo import demo_pins
from evpack.errors import EvidenceError, IntegrityError, MissingFile

WINDOW = 128


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture that the loaders take for the shipped one."""
    root = tmp_path / "fixture"
    shutil.copytree(fixture.fixture_root(), root)
    monkeypatch.setattr(fixture, "fixture_root", lambda: root)
    return root


def test_shipped_fixture_is_intact_and_small() -> None:
    files = [path for path in fixture.fixture_root().rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in fixture.fixture_model().iterdir()}
    assert all(path.suffix == ".txt" for path in fixture.fixture_text().iterdir())
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_evaluation_text_was_never_trained_on() -> None:
    facts = fixture.fixture_facts()
    assert not set(facts["trained_on"]) & (set(facts["files"]["text"]) | set(demo_pins().text.speeches))
    assert not set(facts["trained_on"].values()) & set(facts["files"]["text"].values())
    assert set(facts["files"]["text"].items()) <= set(demo_pins().text.files.items())


def test_a_flipped_bit_in_the_weights_is_named(copy: Path) -> None:
    weights = copy / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        fixture.fixture_model()
    assert fixture.fixture_text() == copy / "text"


def test_a_lost_text_is_named(copy: Path) -> None:
    lost = min((copy / "text").iterdir())
    lost.unlink()
    with pytest.raises(IntegrityError, match=lost.name):
        fixture.fixture_text()


def test_a_fixture_without_digests_is_refused(copy: Path) -> None:
    (copy / fixture.DIGESTS_NAME).write_text("[]")
    with pytest.raises(EvidenceError, match="files"):
        fixture.fixture_model()
    (copy / fixture.DIGESTS_NAME).unlink()
    with pytest.raises(MissingFile, match=fixture.DIGESTS_NAME):
        fixture.fixture_model()


def test_model_has_the_recorded_perplexity_on_its_text(one_torch_thread: None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    measured = fixture.fixture_facts()["measured"]
    tokenizer = AutoTokenizer.from_pretrained(fixture.fixture_model())
    ids: list[int] = []
    for path in sorted(fixture.fixture_text().iterdir()):
        ids += [*tokenizer(path.read_text(encoding="utf-8"))["input_ids"], tokenizer.eos_token_id]
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    assert len(windows) == measured["held_out_windows"] >= 700
    model = AutoModelForCausalLM.from_pretrained(fixture.fixture_model(), dtype=torch.float32).eval()
    with torch.inference_mode():
        losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in windows.split(32)]
    assert math.exp(sum(losses) / len(windows)) == pytest.approx(measured["held_out_perplexity"], rel=1e-3)

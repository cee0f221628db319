"""Models from the hub (a real client against a hub on the loopback interface), from the cache, and from GGUF files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from evpack.catalog.scenarios import Scenario
from evpack.catalog.suites import chosen_scenarios, suite
from evpack.cli.main import build_app
from evpack.errors import BadInput, CheckpointError, Transient
from evpack.files import read_json
from evpack.home import Home
from evpack.plan import hub as client
from evpack.plan.campaign import build_plan, plan_campaign
from evpack.plan.preflight import check_kinds
from evpack.plan.sources import content_digest, converted_dir, fetch_snapshot, hub_cache, weight_files
from evpack.rundir import RunDir
from evpack.settings import Settings
from tests.plan.hub_server import HubServer, commit_of, lead_client_to, serving

NOW = "2026-11-23T12:00:00Z"
TUNED = {
    "quant_rtn": {"scope": "ffn", "bits": 4, "group_size": 32},
    "fp8_quant": {"scope": "ffn", "format": "e5m2"},
    "magnitude_prune": {"scope": "ffn", "sparsity": 0.12},
    "lowrank_svd": {"scope": "ffn@layer=31", "rank": 32},
}
MakeSettings = Callable[..., Settings]
MakeRepository = Callable[..., Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, and a token in the environment that nobody may send to it."""
    with serving() as server:
        lead_client_to(server.endpoint, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        for name in ("HF_HUB_CACHE", "HF_HOME"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def make_repository(tmp_path: Path) -> MakeRepository:
    """A repository as the hub has them: index and shards, a second copy as pickles, files nobody needs."""

    def make(name: str = "repository", shards: int = 2, rows: int = 8) -> Path:
        directory = tmp_path / "hub" / name
        (directory / "onnx").mkdir(parents=True)
        weight_map = {}
        for number in range(1, shards + 1):
            file = f"model-{number:05d}-of-{shards:05d}.safetensors"
            save_file({f"t{number}": np.zeros((rows * number, 4), np.float16)}, directory / file)
            weight_map[f"t{number}"] = file
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (directory / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 32}))
        for other in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "run.py", "onnx/model.json"):
            (directory / other).write_text("not needed")
        (directory / "tokenizer_config.json").write_text("{}")
        return directory

    return make


def blocks(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("model-*.safetensors"))


def accept(settings: Settings, checkpoints: Any) -> None:
    """A text check that finds nothing wrong."""


def online(make_settings: MakeSettings, **params: Any) -> Settings:
    return make_settings(**{"models": ["org/m"], "net": True} | params)


# --- with network ----------------------------------------------------------------------------------------------------
def test_planning_pins_and_measures_without_downloading_weights(
    hub: HubServer, make_repository: MakeRepository, make_settings: MakeSettings, home: Home, tmp_path: Path
) -> None:
    repository = make_repository(rows=1000)
    commit = hub.add("org/m", repository)
    run = RunDir(tmp_path / "run")
    plan = plan_campaign(run, online(make_settings), home, source_repo={}, check_source=accept)
    (model,) = plan.models
    assert (model.source.kind, model.source.revision, model.source.format) == ("hub", commit, "safetensors")
    assert model.weights_gb == round(blocks(repository) / 1e9, 3)
    pins = read_json(run.model_revisions)
    assert pins == read_json(home.model_revisions)
    entry = {"revision": commit, "resolved_at": plan.created_at, "gated": False, "private": False}
    assert pins == {
        "generated_at": plan.created_at,
        "suite": "fixture",
        "model_list": ["org/m"],
        "models": {"org/m": entry},
    }
    snapshot = hub_cache(Settings(), home) / "models--org--m" / "snapshots" / commit
    here = {"config.json", "model.safetensors.index.json", "tokenizer_config.json"}
    assert {path.name for path in snapshot.iterdir()} == here
    assert not [line for line in hub.asked if line.startswith("!")], "a credential was sent"


def test_a_dry_run_knows_sizes_exactly_and_writes_no_pins(
    hub: HubServer, make_repository: MakeRepository, make_settings: MakeSettings, home: Home
) -> None:
    repository = make_repository(rows=1000)
    hub.add("org/m", repository)
    draft = build_plan(online(make_settings), home, NOW)
    (space,) = draft.space
    assert space.weights_gb == blocks(repository) / 1e9
    assert space.arrives == home.hf / "hub"
    largest = build_plan(online(make_settings, scenarios="nan_injection"), home, NOW).space[0].errors_gb
    assert largest == 2 * 1000 * 4 * 2 / 1e9
    assert not home.model_revisions.exists()


def test_pins_of_other_models_are_kept(
    hub: HubServer, make_repository: MakeRepository, make_settings: MakeSettings, home: Home, tmp_path: Path
) -> None:
    hub.add("org/m", make_repository())
    home.root.mkdir()
    other = {"revision": "f" * 40, "resolved_at": NOW, "gated": False, "private": False}
    home.model_revisions.write_text(json.dumps({"models": {"org/other": other}}))
    plan_campaign(RunDir(tmp_path / "run"), online(make_settings), home, source_repo={}, check_source=accept)
    assert set(read_json(home.model_revisions)["models"]) == {"org/other", "org/m"}


def test_with_network_the_head_is_pinned_anew_unless_a_file_holds_it(
    hub: HubServer, make_repository: MakeRepository, make_settings: MakeSettings, home: Home, tmp_path: Path
) -> None:
    first = hub.add("org/m", make_repository("one"))
    assert build_plan(online(make_settings), home, NOW).pins["org/m"]["revision"] == first
    second = hub.add("org/m", make_repository("two"))
    assert build_plan(online(make_settings), home, NOW).pins["org/m"]["revision"] == second
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"models": {"org/m": {"revision": first}}}))
    held = build_plan(online(make_settings, model_revisions_file=str(pins)), home, NOW)
    assert held.plan.models[0].source.revision == first


@pytest.mark.parametrize(
    ("flags", "said"),
    [({"gated": "auto"}, "org/closed is gated"), ({"private": True}, "org/closed is not on the hub, or private")],
)
def test_closed_models_are_refused_and_nothing_is_written(
    flags: dict[str, Any],
    said: str,
    hub: HubServer,
    make_repository: MakeRepository,
    make_settings: MakeSettings,
    home: Home,
    tmp_path: Path,
) -> None:
    repository = make_repository()
    hub.add("org/m", repository)
    hub.add("org/closed", repository, **flags)
    settings, run = online(make_settings, models=["org/m", "org/closed"]), RunDir(tmp_path / "run")
    with pytest.raises(BadInput, match=said) as caught:
        plan_campaign(run, settings, home, source_repo={}, check_source=accept)
    assert caught.value.exit_code == 2 and caught.value.mend
    assert not run.root.exists() and not home.root.exists()


def test_unknown_unreachable_and_switched_off(
    hub: HubServer,
    make_repository: MakeRepository,
    make_settings: MakeSettings,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    settings = online(make_settings)
    with pytest.raises(BadInput, match="org/m is not on the hub"):
        build_plan(settings, home, NOW)
    hub.add("org/m", make_repository())
    hub.broken = True
    with pytest.raises(BadInput, match="the hub answers 503"):
        build_plan(settings, home, NOW)
    hub.broken = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE"):
        build_plan(settings, home, NOW)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lead_client_to("http://127.0.0.1:9", monkeypatch)  # discard: nobody listens
    with pytest.raises(BadInput, match="the hub cannot be reached"):
        build_plan(settings, home, NOW)
    assert not home.root.exists()


def test_fetching_takes_one_weight_format_and_nothing_else(
    hub: HubServer, make_repository: MakeRepository, make_settings: MakeSettings, home: Home
) -> None:
    commit = hub.add("org/m", make_repository())
    snapshot = fetch_snapshot("org/m", commit, online(make_settings), home)
    assert {path.name for path in snapshot.iterdir()} == {
        *("config.json", "tokenizer_config.json", "model.safetensors.index.json"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    }
    before = len(hub.asked)
    offline = make_settings(models=["org/m"])
    assert fetch_snapshot("org/m", commit, offline, home) == snapshot
    assert len(hub.asked) == before, "offline asked the hub"
    hub.asked.clear()
    assert fetch_snapshot("org/m", commit, online(make_settings), home) == snapshot
    assert hub.downloads() == [], "fetched twice"


def test_failures_of_a_download(
    hub: HubServer,
    make_repository: MakeRepository,
    make_settings: MakeSettings,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client's own retries
    commit, settings = hub.add("org/m", make_repository()), online(make_settings)
    with pytest.raises(BadInput, match="revision"):
        fetch_snapshot("org/m", commit_of("another"), settings, home)
    hub.broken = True
    with pytest.raises(Transient, match=r"org/m: the hub"):
        fetch_snapshot("org/m", commit, settings, home)
    hub.broken = False
    hub.repositories["org/m"].gated = "manual"
    with pytest.raises(BadInput, match="org/m is gated"):
        fetch_snapshot("org/m", commit, settings, home)


def test_a_header_that_cannot_be_read_is_named(hub: HubServer, make_repository: MakeRepository) -> None:
    repository = make_repository()
    commit = hub.add("org/m", repository)
    assert client.largest_tensor("org/m", commit) == 2 * 8 * 4 * 2
    (repository / "model-00002-of-00002.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match=r"org/m, revision .*model-00002"):
        client.largest_tensor("org/m", commit)


# --- without network -------------------------------------------------------------------------------------------------
def test_offline_needs_the_whole_snapshot(
    hub: HubServer, make_repository: MakeRepository, make_settings: MakeSettings, home: Home, tmp_path: Path
) -> None:
    repository = make_repository(rows=1000)
    commit = hub.add("org/m", repository)
    plan_campaign(RunDir(tmp_path / "run"), online(make_settings), home, source_repo={}, check_source=accept)
    offline, before = make_settings(models=["org/m"]), len(hub.asked)
    with pytest.raises(BadInput, match="without its weights") as caught:
        build_plan(offline, home, NOW)
    assert "evpack revisions pin --fetch" in caught.value.mend
    shard = fetch_snapshot("org/m", commit, online(make_settings), home) / "model-00001-of-00002.safetensors"
    arrived = shard.readlink()
    shard.unlink()
    with pytest.raises(BadInput, match=r"model-00001-of-00002\.safetensors.* is missing"):
        build_plan(offline, home, NOW)
    shard.symlink_to(arrived)
    before = len(hub.asked)
    draft = build_plan(offline, home, NOW)
    assert draft.plan.models[0].source.revision == commit
    assert (draft.space[0].arrives, draft.space[0].weights_gb) == (None, blocks(repository) / 1e9)
    assert len(hub.asked) == before


def test_offline_names_every_model_without_a_pin(make_settings: MakeSettings, home: Home) -> None:
    with pytest.raises(BadInput, match=r"without a pinned revision .*: org/a, org/b") as caught:
        build_plan(make_settings(models=["org/a", "org/b"]), home, NOW)
    assert "evpack revisions pin" in caught.value.mend


def can_be_made(scenario: Scenario) -> bool:
    try:
        check_kinds([scenario])
    except BadInput:
        return False
    return True


@pytest.mark.parametrize("name", ["subset", "showcase", "workshop3", "full"])
def test_shipped_suites_plan_offline_from_a_filled_cache(
    name: str, make_settings: MakeSettings, make_model: Callable[..., Path], home: Home, tmp_path: Path
) -> None:
    """Tiny weights under the real ids, every scenario that can be made."""
    ids = [model.id for model in suite(name).models]
    pins = {}
    for index, model_id in enumerate(ids):
        commit = commit_of(model_id)
        snapshot = home.hf / "hub" / ("models--" + model_id.replace("/", "--")) / "snapshots" / commit
        snapshot.parent.mkdir(parents=True)
        make_model(f"m{index}", rows=8 * (index + 1)).rename(snapshot)
        pins[model_id] = {"revision": commit, "resolved_at": NOW, "gated": False, "private": False}
    home.model_revisions.write_text(json.dumps({"models": pins}))
    scenarios = [scenario.id for scenario in chosen_scenarios(Settings(suite=name)).scenarios if can_be_made(scenario)]
    tuned = tmp_path / "all_edits.json"
    tuned.write_text(json.dumps({"defaults": {name: {"status": "selected", **entry} for name, entry in TUNED.items()}}))
    settings = make_settings(suite=name, models=None, scenarios=scenarios, tuned_edit_params_file=str(tuned))
    draft = build_plan(settings, home, NOW)
    assert [scenario.id for scenario in draft.plan.scenarios] == scenarios
    assert {model.id for model in draft.plan.models} == set(ids)
    assert draft.documents["model_revisions.json"]["models"] == pins


# --- files of a checkpoint -------------------------------------------------------------------------------------------
def files(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text("x")
    return directory


def test_one_weight_format_is_chosen(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings()
    place = files(tmp_path / "a", "pytorch_model.bin", "model.safetensors", "consolidated.safetensors")
    assert weight_files(place, "m", settings).names == ("model.safetensors",)
    place = files(tmp_path / "b", "pytorch_model.bin", "training_args.bin")
    with pytest.raises(BadInput, match=r"only pickles \(pytorch_model\.bin\)") as caught:
        weight_files(place, "m", settings)
    assert "PACK_CONVERT_PICKLE=1" in caught.value.mend
    weights = weight_files(place, "m", make_settings(models=["org/m"], convert_pickle=True))
    assert (weights.format, weights.names) == ("pickle", ("pytorch_model.bin",))


def test_safetensors_that_setup_could_not_read_are_no_weights(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(models=["org/m"], convert_pickle=True)
    place = files(tmp_path / "a", "model-1.safetensors", "model-2.safetensors")
    with pytest.raises(BadInput, match=r"no model\.safetensors and no index of shards that would name model-1\."):
        weight_files(place, "m", settings)
    with pytest.raises(BadInput, match="no index of shards that would name consolidated"):
        weight_files(files(tmp_path / "b"), "m", settings, ["consolidated.safetensors"])
    weights = weight_files(files(tmp_path / "c", "pytorch_model.bin", "adapter.safetensors"), "m", settings)
    assert (weights.format, weights.names) == ("pickle", ("pytorch_model.bin",))


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"t": "/etc/model-1.safetensors"}, "which is no plain file name"),
        ({"t": "model-1.safetensors", "u": "model-2.safetensors"}, r"'model-2\.safetensors' it names is missing"),
        ({"t": "../../secret.safetensors"}, r"'\.\./\.\./secret\.safetensors', which is no plain file name"),
        ({"t": 3}, "does not name files"),
        ({"t": "model-1.safetensors", "u": ["x"]}, "does not name files"),
        ({"t": {"file": "model-1.safetensors"}}, "does not name files"),
        ({}, "does not name files"),
        (None, "does not name files"),
    ],
)
def test_a_wrong_index_is_refused(weight_map: object, said: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    place = files(tmp_path / "a", "model-1.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadInput, match=said):
        weight_files(place, "m", make_settings())


# --- GGUF ------------------------------------------------------------------------------------------------------------
def test_a_gguf_file_is_planned_by_its_header(make_settings: MakeSettings, home: Home, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "Tiny-1.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 1000), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(1000, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft = build_plan(make_settings(models=[str(path)]), home, NOW)
    (model,), (space,) = draft.plan.models, draft.space
    revision = f"sha256:{content_digest(path)}"
    assert (model.id, model.source.path, model.source.format) == ("Tiny-1", str(path), "gguf")
    assert model.source.revision == revision
    assert space.weights_gb == 4000 * 2 / 1e9
    assert space.arrives == converted_dir(home, "Tiny-1", revision)
    assert home.models in space.arrives.parents
    path.write_bytes(b"GGUF and nothing more")
    with pytest.raises(BadInput, match=r"Tiny-1\.gguf is no GGUF file"):
        build_plan(make_settings(models=[str(path)]), home, NOW)


# --- the command -----------------------------------------------------------------------------------------------------
def test_the_command_pins_fetches_and_shows(
    hub: HubServer, make_repository: MakeRepository, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    commit = hub.add("org/m", make_repository())
    done = CliRunner().invoke(build_app(), ["revisions", "pin", "org/m", "--fetch"])
    assert done.exit_code == 0, done.exception
    assert f"org/m {commit}" in done.output
    snapshot = home.hf / "hub" / "models--org--m" / "snapshots" / commit
    assert (snapshot / "model-00002-of-00002.safetensors").is_file()
    shown = CliRunner().invoke(build_app(), ["revisions", "show"])
    assert f"org/m {commit}" in shown.output


def test_the_client_goes_where_hf_endpoint_points_and_ends_with_exit_code_2(
    hub: HubServer, make_repository: MakeRepository, home: Home
) -> None:
    """A process of its own, as an operator starts it."""
    hub.add("org/closed", make_repository(), gated="manual")
    environ = {**os.environ, "HF_ENDPOINT": hub.endpoint, "EVPACK_HOME": str(home.root)}
    command = [sys.executable, "-m", "evpack.cli.main", "revisions", "pin", "org/closed"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("evpack: model org/closed is gated\n  mend: ")
    assert not home.root.exists()

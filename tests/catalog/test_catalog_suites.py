"""Suites, model slots, locations and the choice of scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.suites import (
    chosen_models,
    chosen_scenarios,
    locate,
    named_model,
    runs_of,
    settings_for,
    suite,
    suites,
)
from evpack.errors import BadInput, MissingFile
from evpack.home import Home
from evpack.settings import Settings
from evpack.settings_resolve import resolve

MISTRAL = "mistralai/Mistral-7B-v0.1"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def ids(settings: Settings) -> list[str]:
    return [model.id for model in chosen_models(settings)]


def settings(**params: Any) -> Settings:
    return resolve(params, {}, {}, {})


def test_the_references_suites() -> None:
    full = [MISTRAL, "Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-32B", "01-ai/Yi-34B"]
    assert ids(settings(suite="subset")) == [MISTRAL]
    assert ids(settings(suite="showcase")) == full[:3]
    assert ids(settings(suite="workshop3")) == [MISTRAL, "mistralai/Mixtral-8x7B-v0.1", "01-ai/Yi-34B"]
    assert ids(settings(suite="full")) == [*full, "mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen1.5-72B"]


def test_every_suite_resolves(home: Home) -> None:
    (home.texts / "sotu-heldout").mkdir(parents=True)
    for name in suites():
        resolved = settings_for({"suite": name}, {}, {}, home)
        assert resolved.suite == name and chosen_models(resolved) and chosen_scenarios(resolved).scenarios


def test_unknown_suite_lists_the_known(home: Home) -> None:
    with pytest.raises(BadInput, match="nope") as caught:
        settings_for({"suite": "nope"}, {}, {}, home)
    assert all(name in caught.value.mend for name in suites())


def test_slots_are_overridden_added_and_disabled() -> None:
    assert ids(resolve({"suite": "showcase"}, {}, {"MODEL_1": "", "MODEL_2": "a/b", "MODEL_5": "c/d"}, {})) == [
        "a/b",
        "Qwen/Qwen2.5-32B",
        "c/d",
    ]
    with pytest.raises(BadInput, match="no model is left"):
        chosen_models(resolve({}, {}, {"MODEL_1": ""}, {}))


def test_models_given_as_a_list() -> None:
    assert ids(settings(suite="demo", models=["SmolLM2-135M", "x/y"])) == ["SmolLM2-135M", "x/y"]
    assert chosen_models(settings(models=["SmolLM2-135M"]))[0].location == "home:models/SmolLM2-135M"


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "My Model").mkdir()
    model = named_model(str(tmp_path / "My Model"))
    assert (model.id, model.location) == ("My Model", str(tmp_path / "My Model"))


@pytest.mark.parametrize("text", ["/no/such/dir", "./nothing", "~/nothing-at-all"])
def test_a_path_that_is_not_there(text: str) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        named_model(text)


@pytest.mark.parametrize("text", ["a/b/c", "a b", "x/../y", "a//b"])
def test_neither_id_nor_path(text: str) -> None:
    with pytest.raises(BadInput):
        named_model(text)


def test_locations(home: Home) -> None:
    with pytest.raises(MissingFile, match="demo"):
        locate("home:models/demo", home)
    (home.models / "demo").mkdir(parents=True)
    assert locate("home:models/demo", home) == home.models / "demo"
    assert (locate("asset:fixture/model", home) / "config.json").is_file()


def test_text_of_a_suite_is_needed_only_when_used(home: Home, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="sotu-heldout") as caught:
        settings_for({"suite": "demo"}, {}, {}, home)
    assert "evpack assets demo" in caught.value.mend
    own = settings_for({"suite": "demo", "text_path": str(tmp_path)}, {}, {}, home)
    assert own.text_path == str(tmp_path)
    assert settings_for({"suite": "demo", "dataset": "local_jsonl"}, {}, {}, home).text_path is None


def test_demo_and_fixture_are_small_campaigns(home: Home) -> None:
    whole = ("invariants", "spectral", "rmt", "variance", "invariants")
    for name in ("demo", "fixture"):
        block = suite(name).settings
        resolved = resolve({}, {}, {}, {key: value for key, value in block.items() if key != "text_path"})
        assert (resolved.profile, resolved.dataset, resolved.guards_order) == ("small", "text", whole)


def test_scenarios_by_id_keep_manifest_order() -> None:
    chosen = chosen_scenarios(settings(suite="demo", scenarios="nan_injection,prune_clean"))
    assert [scenario.id for scenario in chosen.scenarios] == ["prune_clean", "nan_injection"]


def test_unknown_scenario_lists_the_known() -> None:
    with pytest.raises(BadInput, match="'quant'") as caught:
        chosen_scenarios(settings(suite="demo", scenarios="nan_injection,quant"))
    assert "prune_50pct_stress" in caught.value.mend


def test_scenarios_without_runs_are_left_out() -> None:
    def left(**params: Any) -> set[str]:
        return {scenario.category.value for scenario in chosen_scenarios(settings(suite="full", **params)).scenarios}

    assert left(clean_edit_runs=0) == {"stress", "error_injection"}
    assert left(run_error_injection=False) == {"clean", "stress"}
    with pytest.raises(BadInput, match="no scenario is left"):
        left(clean_edit_runs=0, stress_edit_runs=0, run_error_injection=False)


def test_runs_follow_the_settings() -> None:
    chosen = settings(suite="demo", clean_edit_runs=4, stress_edit_runs=1)
    runs = {scenario.id: runs_of(scenario, chosen) for scenario in chosen_scenarios(chosen).scenarios}
    assert runs["prune_clean"] == 4 and runs["prune_50pct_stress"] == 1 and runs["nan_injection"] == 1

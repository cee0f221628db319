"""Tuned parameters: lookup order, the shipped values, damaged files; and what the planner believes is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.edit_spec import EDIT_TYPES, parse_edit_spec, resolve_edit
from evpack.catalog.suites import chosen_models, settings_for, suites
from evpack.catalog.supported import SUPPORTED_EDITS, SUPPORTED_FAULTS
from evpack.catalog.tuned import TunedParams, load_tuned
from evpack.errors import BadInput
from evpack.home import Home


@pytest.mark.parametrize("name", ["demo", "fixture"])
def test_shipped_figures_are_of_the_campaign_that_the_suite_runs(name: str, tmp_path: Path) -> None:
    """Who changes a suite's windows or runs has to tune its model anew."""
    settings = settings_for({"suite": name, "text_path": str(tmp_path)}, {}, {}, Home(tmp_path))
    (model,) = chosen_models(settings)
    for edit_type in EDIT_TYPES:
        measured = (load_tuned(None).entry(edit_type, model.id) or {})["measured"]
        for key in ("tier", "profile", "seq_len", "preview_windows", "final_windows"):
            assert measured[key] == getattr(settings, key), (edit_type, key)
        assert measured["runs"] == settings.clean_edit_runs
        assert measured["stride"] == settings.advance


def test_shipped_entries_resolve_for_every_model_of_a_suite() -> None:
    tuned = load_tuned(None)
    for model in {model.id for entry in suites().values() for model in entry.models}:
        for edit_type in EDIT_TYPES:
            entry = tuned.entry(edit_type, model)
            assert entry is not None and entry["status"] == "selected" and entry["reason"]
            resolve_edit(parse_edit_spec(f"{edit_type}:clean:ffn"), entry)


@pytest.mark.parametrize(
    ("model", "edit_type", "expected"),
    [
        ("mistralai/Mistral-7B-v0.1", "lowrank_svd", {"scope": "ffn@layer=15", "rank": 32}),
        ("Qwen/Qwen2.5-14B", "lowrank_svd", {"scope": "ffn@layer=31", "rank": 32}),
        ("01-ai/Yi-34B", "quant_rtn", {"bits": 4, "group_size": 32, "edit_dir_name": "quant_4bit_clean"}),
        ("Qwen/Qwen1.5-72B", "fp8_quant", {"format": "e5m2", "edit_dir_name": "fp8_e5m2_clean"}),
        ("SmolLM2-135M", "quant_rtn", {"bits": 5, "group_size": 32, "edit_dir_name": "quant_5bit_clean"}),
        ("SmolLM2-135M", "fp8_quant", {"format": "e5m2", "scale": "none", "scope": "ffn"}),
        ("fixture", "magnitude_prune", {"sparsity": 0.3, "scope": "ffn", "edit_dir_name": "prune_30pct_clean"}),
        ("fixture", "lowrank_svd", {"rank": 72, "scope": "ffn@layer=2", "edit_dir_name": "svd_rank72_clean"}),
    ],
)
def test_shipped_values(model: str, edit_type: str, expected: dict[str, Any]) -> None:
    edit = resolve_edit(parse_edit_spec(f"{edit_type}:clean:all"), load_tuned(None).entry(edit_type, model))
    assert {key: getattr(edit, key) for key in expected} == expected


def test_lookup_order() -> None:
    by_id, by_name, flat, default = ({"bits": bits} for bits in (2, 3, 4, 5))
    document: dict[str, Any] = {
        "models": {"A/b": {"quant_rtn": by_id}, "a__b": {"quant_rtn": by_name}},
        "quant_rtn": flat,
        "defaults": {"quant_rtn": default},
    }
    assert TunedParams(document).entry("quant_rtn", "A/b", "a__b") == by_id
    del document["models"]["A/b"]
    assert TunedParams(document).entry("quant_rtn", "A/b", "a__b") == by_name
    del document["models"]["a__b"]
    assert TunedParams(document).entry("quant_rtn", "A/b", "a__b") == flat
    del document["quant_rtn"]
    assert TunedParams(document).entry("quant_rtn", "A/b", "a__b") == default
    assert TunedParams(document).entry("lowrank_svd", "A/b", "a__b") is None


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"_meta": {"schema": "tuned_edit_params_v9"}},
        {"_meta": 3},
        {"models": []},
        {"models": {"m": 3}},
        {"models": {"m": {"quant_rtn": 4}}},
        {"defaults": {"lowrank_svd": "r32"}},
        {"quant_rtn": [1]},
    ],
)
def test_damaged_documents_are_named(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match=r"tuned\.json"):
        load_tuned(str(path))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.json"):
        load_tuned(str(tmp_path / "nothing.json"))


def test_what_plan_calls_supported_is_what_the_kernels_support() -> None:
    from evpack import edits, faults

    assert frozenset(edits.SUPPORTED) == SUPPORTED_EDITS
    assert frozenset(faults.SUPPORTED) == SUPPORTED_FAULTS

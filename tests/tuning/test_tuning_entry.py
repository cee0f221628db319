"""Entries: what was measured stands in them, the schema admits them, and a campaign resolves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.catalog.edit_spec import ResolvedEdit, parse_edit_spec, resolve_edit
from evpack.catalog.policy import Policy
from evpack.catalog.tuned import empty_document, load_tuned, with_entries
from evpack.errors import BadInput
from evpack.tuning.acceptance import Acceptance, Shape
from evpack.tuning.entry import Trial, entry_of, pooled

FACTS = {
    "limits": [0.95, 1.1],
    "tier": "balanced",
    "profile": "small",
    **dict.fromkeys(("model_digest", "text_digest", "windows_digest"), "a" * 64),
    "window_seed": 1042,
    "seq_len": 128,
    "stride": 128,
    "compute": {},
    "versions": {"evpack": "0.1.0"},
    "date": "2026-11-23",
}
NOW = "2026-11-23T12:00:00Z"
SURE, UNSURE = Acceptance(1999, 2000, 0.9972, 1.0), Acceptance(1900, 2000, 0.94, 0.96)


def edit(kind: str = "quant_rtn", **values: Any) -> ResolvedEdit:
    entry = {"status": "selected", **(values or {"bits": 5, "group_size": 32, "scope": "ffn"})}
    return resolve_edit(parse_edit_spec(f"{kind}:clean:ffn"), entry)


@pytest.fixture
def trials(pool: Callable[..., Any]) -> list[Trial]:
    dropped = Trial(edit(bits=3, group_size=0), 32, pooled(*pool(0.2, count=32)), problem="its first run does not pass")
    unsure = Trial(edit(bits=4, group_size=32), 64, pooled(*pool(0.09)), UNSURE)
    return [dropped, unsure, Trial(edit(), 64, pooled(*pool(0.01)), SURE)]


def saved(path: Path, entry: dict[str, Any], kind: str = "quant_rtn") -> Any:
    """The entry as a campaign reads it from a file."""
    path.write_text(json.dumps(with_entries(empty_document(), "org/model", {kind: entry}, NOW)))
    return load_tuned(str(path)).entry(kind, "org/model")


def test_the_last_trial_is_selected(trials: list[Trial], shape: Shape, tmp_path: Path) -> None:
    entry = saved(tmp_path / "tuned.json", entry_of(trials, shape, FACTS))
    assert resolve_edit(parse_edit_spec("quant_rtn:clean:all"), entry).model_dump(exclude={"spec", "reason"}) == (
        edit().model_dump(exclude={"spec", "reason"})
    )
    measured = entry["measured"]
    assert (measured["runs"], measured["preview_windows"], measured["windows"]) == (3, 16, 64)
    assert measured["ratio"] == pytest.approx(1.01, abs=0.005)
    assert measured["acceptance"] == {"probability": 0.9995, "interval": [0.9972, 1.0], "resamples": 2000, "seed": 503}
    assert [(tried["bits"], tried["windows"]) for tried in measured["stronger"]] == [(3, 32), (4, 64)]
    assert "5 bits in groups of 32 on ffn" in entry["reason"] and "4 bits" in entry["reason"]


def test_nothing_good_is_skipped_with_the_reason(trials: list[Trial], shape: Shape, tmp_path: Path) -> None:
    entry = saved(tmp_path / "tuned.json", entry_of(trials[:2], shape, FACTS))
    assert entry["status"] == "skipped" and "4 bits in groups of 32 on ffn" in entry["reason"]
    assert len(entry["measured"]["stronger"]) == 2
    assert resolve_edit(parse_edit_spec("quant_rtn:clean:ffn"), entry).status == "skipped"


def test_a_rung_that_could_not_be_made_says_why(shape: Shape, tmp_path: Path) -> None:
    fp8 = Trial(edit("fp8_quant", format="e5m2", scale="channel"), problem="makes 3 entries non-finite")
    entry = saved(tmp_path / "tuned.json", entry_of([fp8], shape, FACTS), "fp8_quant")
    assert "makes 3 entries non-finite" in entry["reason"]
    assert entry["measured"]["stronger"][0]["ratio"] is None


def test_a_broken_loss_has_no_figures(pool: Callable[..., Any], policy: Policy, shape: Shape) -> None:
    losses = pool(0.0, broken=True)
    figures = Trial(edit(), 64, pooled(*losses), UNSURE).to_json()
    assert (figures["ratio"], figures["ratio_interval"]) == (None, None)


def test_entries_replace_only_their_own(trials: list[Trial], shape: Shape) -> None:
    document = load_tuned(None).document
    entry = entry_of(trials, shape, FACTS)
    changed = with_entries(document, "SmolLM2-135M", {"quant_rtn": entry}, NOW)
    assert changed["_meta"]["generated_at"] == NOW and changed["_meta"]["notes"] == document["_meta"]["notes"]
    assert changed["models"]["SmolLM2-135M"]["quant_rtn"] == entry
    assert changed["models"]["SmolLM2-135M"]["magnitude_prune"] == document["models"]["SmolLM2-135M"]["magnitude_prune"]
    assert changed["models"]["01-ai/Yi-34B"] == document["models"]["01-ai/Yi-34B"]
    assert document == load_tuned(None).document


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"status": "skipped"}, "reason"),
        ({"status": "skipped", "reason": ""}, "reason"),
        ({"status": 1}, "status"),
        ({"status": "selected", "bits": [4]}, "bits"),
        ({"status": "selected", "scale": "row"}, "scale"),
        ({"status": "selected", "measured": {"runs": 3}}, "measured"),
    ],
)
def test_malformed_entries_are_refused(entry: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=named) as caught:
        saved(tmp_path / "tuned.json", entry)
    assert "models.org/model.quant_rtn" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("quant_rtn", {"status": "selected", "bitwidth": 4, "group_size": 32}),
        ("magnitude_prune", {"status": "selected", "prune_level": 0.12, "note": "unknown keys are fine"}),
    ],
)
def test_other_tools_names_are_read(kind: str, entry: dict[str, Any], tmp_path: Path) -> None:
    edit = resolve_edit(parse_edit_spec(f"{kind}:clean:ffn"), saved(tmp_path / "tuned.json", entry, kind))
    assert (edit.bits, edit.sparsity) in ((4, None), (None, 0.12))

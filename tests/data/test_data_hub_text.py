"""Hub datasets, by the real `datasets` library on files made here; nothing talks to a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evpack.data.hub_text import HubText
from evpack.data.preflight import check_source
from evpack.data.sources import source_from
from evpack.errors import BadInput, DataError, MissingFile, Transient
from evpack.home import Home
from evpack.settings import Settings

datasets = pytest.importorskip("datasets")

SMALL = {"preview_windows": 2, "final_windows": 2, "seq_len": 8, "clean_edit_runs": 1, "stress_edit_runs": 1}
PROSE = "A line of prose that is long enough."


def settings(**values: object) -> Settings:
    return Settings.model_validate(SMALL | {"drift_calibration_runs": 1, "dataset": "hf_text"} | values)


def parquet(directory: Path, rows: Sequence[Any], field: str = "text", split: str = "validation") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({field: rows, "n": list(range(len(rows)))}), directory / f"{split}-00000-of-00001.parquet")
    return directory


def prepared(tmp_path: Path, name: str, config: str, rows: Sequence[str]) -> Path:
    """A cache in which the library itself prepared a dataset, filed under a hub id."""
    stem = name.rpartition("/")[2]
    source, cache = parquet(tmp_path / "repository" / stem, rows), tmp_path / "cache"
    datasets.load_dataset(str(source), split="validation", cache_dir=str(cache))
    place = cache / name.replace("/", "___")
    (cache / stem).rename(place)
    (place / "default").rename(place / config)
    return cache


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_directory_of_parquet_files_is_read_and_its_rows_are_kept(tmp_path: Path, home: Home) -> None:
    rows = [f"row {i}" for i in range(30)]
    directory = parquet(tmp_path / "words", [*rows, "row 0"])
    chosen = settings(hf_dataset_name=str(directory), hf_config_name="default", hf_max_samples=7)
    check_source(chosen, home=home)
    source = source_from(chosen, home)
    assert source.provider == "hf_text"
    assert list(source.texts()) == rows[:7]
    parquet(directory, ["changed"] * 30)
    assert list(source_from(chosen, home).texts()) == rows[:7]
    more = chosen.model_copy(update={"hf_max_samples": 8})
    assert list(source_from(more, home).texts()) == ["changed"]


def test_two_datasets_never_share_kept_rows(tmp_path: Path, home: Home) -> None:
    one, other = parquet(tmp_path / "a_b", ["one"]), parquet(tmp_path / "a" / "b", ["other"])
    names = (str(one), str(other), str(one)[1:])
    found = {HubText.named(settings(hf_dataset_name=name, hf_config_name=""), home).file for name in names}
    assert len(found) == 3
    for name, row in ((one, "one"), (other, "other")):
        chosen = settings(hf_dataset_name=str(name), hf_config_name="default")
        assert list(source_from(chosen, home).texts()) == [row]


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path, home: Home) -> None:
    chosen = settings(hf_dataset_name=str(parquet(tmp_path / "words", ["x"])), hf_config_name="default")
    text = HubText.named(chosen, home)
    object.__setattr__(text, "_streamed", lambda: iter([{"text": "fine"}, {"text": "a\udc00"}]))
    with pytest.raises(BadInput, match=r"words.*row 1: character 1 is '\\udc00'"):
        text.fetch(network=False)
    assert not text.file.exists()


def test_without_network_a_prepared_dataset_of_the_cache_serves(tmp_path: Path, home: Home) -> None:
    cache = prepared(tmp_path, "acme/words", "en", [f"row {i}" for i in range(30)])
    chosen = settings(hf_dataset_name="acme/words", hf_cache_dir=str(cache), hf_max_samples=4)
    check_source(chosen, home=home)
    assert list(source_from(chosen, home).texts()) == ["row 0", "row 1", "row 2", "row 3"]
    for file in cache.rglob("*.arrow"):
        file.write_bytes(b"not arrow")
    with pytest.raises(DataError, match=r"\.arrow cannot be read"):
        source_from(chosen.model_copy(update={"hf_max_samples": 5}), home)


@pytest.mark.parametrize("name", ["Salesforce/wikitext", "wikitext"])
def test_wikitext2_leaves_out_headings_short_lines_and_repetitions(tmp_path: Path, home: Home, name: str) -> None:
    rows = ["", " = Robert = ", PROSE, "1 2 3 4 5 6 7 8 9 10 11 12 13", PROSE, f" {PROSE} Twice. "]
    cache = prepared(tmp_path, name, "wikitext-2-raw-v1", rows)
    chosen = settings(dataset="wikitext2", hf_datasets_cache=str(cache))
    assert list(source_from(chosen, home).texts()) == [PROSE, f"{PROSE} Twice."]


def test_without_network_and_cache_the_mend_is_named_before_anything_is_fetched(tmp_path: Path, home: Home) -> None:
    chosen = settings(hf_cache_dir=str(tmp_path / "empty"))
    for ask in (check_source, source_from):
        with pytest.raises(MissingFile, match=r"allenai/c4 \(en, validation\)") as caught:
            ask(chosen, home=home)
        assert "PACK_NET=1" in caught.value.mend and "INVARLOCK_HF_CACHE_DIR" in caught.value.mend
    check_source(chosen.model_copy(update={"net": True}), home=home)
    assert not home.texts.exists()


def test_kept_rows_are_counted_when_a_campaign_is_planned(tmp_path: Path, home: Home) -> None:
    chosen = settings(hf_dataset_name=str(parquet(tmp_path / "words", ["tiny"])), hf_config_name="default")
    check_source(chosen, home=home)
    source_from(chosen, home)
    with pytest.raises(BadInput, match="text too short"):
        check_source(chosen, home=home)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hf_text_field": "body"}, r"no field 'body'; its fields are \['n', 'text'\]"),
        ({"hf_text_field": "n"}, "row 0: field 'n' is a int"),
        ({"hf_split": "test"}, "(?i)split.*test"),
        ({"hf_config_name": "fr"}, "'fr' not found"),
    ],
)
def test_a_dataset_that_is_not_what_the_settings_say(
    tmp_path: Path, home: Home, changes: dict[str, object], message: str
) -> None:
    given = {"hf_dataset_name": str(parquet(tmp_path / "words", ["x"])), "hf_config_name": "default"}
    with pytest.raises(BadInput, match=message):
        source_from(settings(**(given | changes)), home)
    assert not home.texts.exists()


def test_a_dataset_without_text_is_refused(tmp_path: Path, home: Home) -> None:
    cache = prepared(tmp_path, "wikitext", "wikitext-2-raw-v1", ["", " = Robert = "])
    with pytest.raises(BadInput, match="holds no text"):
        source_from(settings(dataset="wikitext2", hf_cache_dir=str(cache)), home)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("gone\nfar"), BadInput, "not openly on the hub: gone"),
        (ValueError("BuilderConfig 'zz' not found"), BadInput, "'zz' not found"),
        (ConnectionError("no route"), Transient, "cannot be reached .no route."),
    ],
)
def test_the_hubs_refusals(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    asked: dict[str, Any] = {}

    def load(name: str, config: str | None, **options: Any) -> None:
        asked.update(options, name=name, config=config)
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(kind, match=message):
        source_from(settings(net=True), home)
    assert (asked["name"], asked["config"], asked["split"]) == ("allenai/c4", "en", "validation")
    assert asked["streaming"] is True and asked["token"] is False
    assert "trust_remote_code" not in asked


def test_the_faster_of_two_steps_decides_the_rows(tmp_path: Path, home: Home) -> None:
    chosen = settings(hf_dataset_name=str(parquet(tmp_path / "words", ["late"])), hf_config_name="default")
    text = HubText.named(chosen, home)
    text.file.parent.mkdir(parents=True)

    def rows() -> Any:
        text.file.write_text(json.dumps({"text": "early"}) + "\n")
        yield {"text": "late"}

    object.__setattr__(text, "_streamed", rows)
    assert text.fetch(network=False).read_text() == '{"text": "early"}\n'

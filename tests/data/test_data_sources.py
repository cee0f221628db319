from __future__ import annotations

import json
from pathlib import Path

import pytest

from evpack.data.preflight import check_source
from evpack.data.sources import source_from
from evpack.errors import BadInput, MissingFile
from evpack.settings import Settings

SMALL = {"preview_windows": 2, "final_windows": 2, "seq_len": 8, "clean_edit_runs": 1, "stress_edit_runs": 1}


def settings(**values: object) -> Settings:
    return Settings.model_validate(SMALL | {"drift_calibration_runs": 1, "dataset": "text"} | values)


def texts(**values: object) -> list[str]:
    return list(source_from(settings(**values)).texts())


def test_directory_of_texts_in_name_order_without_duplicates(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.txt").write_bytes("\ufefffirst é".encode())
    (tmp_path / "c.txt").write_text("  second")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "SOURCES").write_text("not a text")
    assert texts(text_path=str(tmp_path)) == ["first é", "second"]


def test_single_file(tmp_path: Path) -> None:
    file = tmp_path / "x.text"
    file.write_text("alone")
    assert texts(text_path=str(file)) == ["alone"]


def test_json_lines_from_file_directory_and_glob(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"body": name}) + "\n\n" + json.dumps({"body": "same"}))
    common: dict[str, object] = {"dataset": "local_jsonl", "local_jsonl_text_field": "body"}
    one = str(tmp_path / "one.jsonl")
    assert texts(**common, local_jsonl_file=one) == ["one", "same"]
    assert texts(**common, local_jsonl_path=str(tmp_path)) == ["one", "same", "two"]
    assert texts(**common, local_jsonl_data_files=(str(tmp_path / "t*.jsonl"), one)) == ["one", "same", "two"]
    assert texts(**common, local_jsonl_path=str(tmp_path), local_jsonl_max_samples=1) == ["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc\0def", "binary"),
        (b"abc\xff", "not UTF-8 .byte 3"),
    ],
)
def test_unusable_text_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=f"bad.txt .*{message}"):
        texts(text_path=str(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 has no text field 'text'"),
        ('{"body": 1}', r"its keys are \['body'"),
        ('{"text": "a\\ud800b"}', r"line 2: character 1 is '\\ud800', half of a surrogate pair"),
        ('{"text": "a", "n": ' + "7" * 5000 + "}", "line 2 is not JSON"),
    ],
)
def test_unusable_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(BadInput, match=message):
        texts(dataset="local_jsonl", local_jsonl_file=str(file))


def test_missing_paths_and_providers(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="nowhere"):
        check_source(settings(text_path=str(tmp_path / "nowhere")))
    with pytest.raises(MissingFile, match=r"no \*\.txt file"):
        check_source(settings(text_path=str(tmp_path)))
    with pytest.raises(BadInput, match="has no path"):
        check_source(settings())
    with pytest.raises(BadInput, match="has no path"):
        check_source(settings(dataset="local_jsonl"))
    with pytest.raises(MissingFile, match="nothing matches"):
        check_source(settings(dataset="local_jsonl", local_jsonl_data_files=(str(tmp_path / "*.jsonl"),)))
    with pytest.raises(BadInput, match="'synthetic' is not supported"):
        check_source(settings(dataset="synthetic"))


def test_preflight_refuses_empty_and_provably_short_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("")
    with pytest.raises(BadInput, match="is empty"):
        check_source(settings(text_path=str(file)))
    file.write_text("x" * 31)
    with pytest.raises(BadInput, match=r"E303: .*3 windows of 8 tokens .*4 needed .*1 missing"):
        check_source(settings(text_path=str(file)))
    file.write_text("x" * 32)
    check_source(settings(text_path=str(file)))


def test_preflight_counts_with_the_models_own_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    file = tmp_path / "a.txt"
    file.write_text("a b " * 15)
    with pytest.raises(BadInput, match=f"3 windows .*tokenizer of {tmp_path.name}.*1 missing"):
        check_source(settings(text_path=str(file)), [tmp_path])
    file.write_text("a b " * 16)
    check_source(settings(text_path=str(file)), [tmp_path])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="is not a tokenizer"):
        check_source(settings(text_path=str(file)), [tmp_path])


def test_what_a_tokenizer_file_says_of_other_inputs_does_not_count(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.enable_truncation(10)
    words.save(str(tmp_path / "tokenizer.json"))
    file = tmp_path / "a.txt"
    file.write_text("a " * 32)
    check_source(settings(text_path=str(file)), [tmp_path])
    words.no_truncation()
    words.enable_padding(length=40)
    words.save(str(tmp_path / "tokenizer.json"))
    file.write_text("a " * 31)
    with pytest.raises(BadInput, match="3 windows"):
        check_source(settings(text_path=str(file)), [tmp_path])

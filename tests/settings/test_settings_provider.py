"""The raw provider mapping."""

from __future__ import annotations

import json

import pytest

from evpack.errors import BadInput
from evpack.settings_resolve import resolve

YAML = "INVARLOCK_DATASET_PROVIDER_YAML"
JSON = "INVARLOCK_DATASET_PROVIDER_JSON"


def test_a_mapping_replaces_every_setting_of_the_text_whatever_its_source() -> None:
    suite = {"dataset": "text", "text_path": "/t", "hf_text_field": "body", "seq_len": 64}
    mapping = "kind: hf_text\ndataset_name: acme/words\nmax_samples: 9\nconfig_name: null"
    settings = resolve({"dataset": "local_jsonl"}, {}, {YAML: mapping}, suite)
    assert (settings.dataset, settings.hf_dataset_name, settings.hf_max_samples) == ("hf_text", "acme/words", 9)
    assert (settings.text_path, settings.hf_text_field, settings.hf_config_name) == (None, "text", "en")
    assert settings.seq_len == 64
    assert resolve({}, {}, {YAML: mapping}, {}).digest() == resolve({YAML: mapping}, {}, {}, {}).digest()


def test_json_and_yaml_mean_the_same() -> None:
    mapping = {"kind": "local_jsonl", "data_files": ["/a.jsonl", "/b.jsonl"], "text_field": "body"}
    settings = resolve({}, {}, {JSON: json.dumps(mapping)}, {})
    assert settings.local_jsonl_data_files == ("/a.jsonl", "/b.jsonl")
    assert settings.local_jsonl_text_field == "body"
    other = resolve({}, {}, {YAML: json.dumps(mapping)}, {})
    assert other.to_json() | {"dataset_provider_yaml": None} == settings.to_json() | {"dataset_provider_json": None}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({YAML: "kind: hf_text\nname: x"}, "provider hf_text has no argument 'name'"),
        ({YAML: "kind: synthetic"}, "'synthetic' is no kind"),
        ({YAML: "hf_text"}, "'hf_text' is no kind"),
        ({YAML: "kind: [hf_text]"}, r"\['hf_text'\] is no kind"),
        ({YAML: "kind: hf_text\nmax_samples: none"}, r"YAML: hf_max_samples='none' \(environment\)"),
        ({YAML: "kind: ["}, "is not plain YAML"),
        ({YAML: "kind: !include other.yaml"}, "no file may be included"),
        ({JSON: '{"kind": "text", "kind": "text"}'}, "stands twice"),
        ({JSON: "[]"}, "is no kind"),
        ({JSON: '{"kind": "wikitext2"}', YAML: "kind: wikitext2"}, "both name a provider"),
    ],
)
def test_a_mapping_that_is_none_names_variable_and_fault(environ: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        resolve({}, {}, environ, {})
    assert "INVARLOCK_DATASET_PROVIDER_" in caught.value.what
    assert caught.value.mend

"""Precedence, types and refusals of the settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evpack.errors import BadInput, EvidenceError
from evpack.files import canonical_json, portable
from evpack.settings import Settings
from evpack.settings_resolve import given_fields, peek_suite, resolve, unknown_variables

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ+secretsecretsecret\n-----END PRIVATE KEY-----\n"


def from_env(**environ: str) -> Settings:
    return resolve({}, {}, environ, {})


def refusal(
    params: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, suite: Any = None
) -> str:
    with pytest.raises(BadInput) as caught:
        resolve(params or {}, {}, environ or {}, suite or {})
    assert caught.value.mend
    return caught.value.diagnostics()


def test_defaults_are_the_references() -> None:
    settings = from_env()
    assert settings.suite == "subset"
    assert (settings.seq_len, settings.stride, settings.preview_windows, settings.final_windows) == (512, 256, 32, 32)
    assert (settings.drift_calibration_runs, settings.clean_edit_runs, settings.stress_edit_runs) == (5, 3, 2)
    assert settings.guards_order == ("invariants", "spectral", "rmt", "variance", "invariants")
    assert settings.run_error_injection and settings.sign_manifest and not settings.net
    assert settings.min_free_disk_gb == 200


def test_precedence_of_the_sources() -> None:
    suite, environ, event, params = {"seq_len": 1_1}, {"INVARLOCK_SEQ_LEN": "12"}, {"seq_len": 13}, {"seq_len": 14}
    assert resolve({}, {}, {}, suite).seq_len == 11
    assert resolve({}, {}, environ, suite).seq_len == 12
    assert resolve({}, event, environ, suite).seq_len == 13
    assert resolve(params, event, environ, suite).seq_len == 14


def test_null_and_empty_params_are_not_set() -> None:
    environ = {"INVARLOCK_SEQ_LEN": "12", "INVARLOCK_TIER": ""}
    settings = resolve({"seq_len": None, "stride": ""}, {}, environ, {"tier": "aggressive"})
    assert (settings.seq_len, settings.stride, settings.tier) == (12, 256, "aggressive")


def test_params_may_be_named_like_the_variables() -> None:
    assert resolve({"INVARLOCK_SEQ_LEN": "64"}, {}, {}, {}).seq_len == 64


def test_empty_model_slot_is_a_value() -> None:
    settings = from_env(MODEL_1="", MODEL_2=" a/b ")
    assert settings.model_slots[:3] == ("", "a/b", None)
    assert resolve({"model_1": ""}, {}, {"MODEL_1": "x/y"}, {}).model_1 == ""


def test_first_variable_that_is_set_wins() -> None:
    assert from_env(PACK_OUTPUT_DIR="/a", OUTPUT_DIR="/b").output_dir == "/a"
    assert from_env(PACK_OUTPUT_DIR="", OUTPUT_DIR="/b").output_dir == "/b"


def test_timeouts_by_type_in_either_case() -> None:
    settings = from_env(
        TASK_TIMEOUT_DEFAULT="100",
        TASK_TIMEOUT_evaluate_EDIT="7",
        TASK_TIMEOUT_CREATE_EDIT="0",
        TASK_TIMEOUT_BUILD_PACK="",
    )
    assert settings.timeout_for("EVALUATE_EDIT") == 7
    assert settings.timeout_for("CREATE_EDIT") is None
    assert settings.timeout_for("BUILD_PACK") is None
    assert settings.timeout_for("SETUP_BASELINE") == 100
    assert from_env(TASK_TIMEOUT_DEFAULT="none").timeout_for("SETUP_BASELINE") is None


def test_timeouts_of_params_are_laid_over_those_of_the_environment() -> None:
    settings = resolve({"task_timeouts": {"create_edit": 5}}, {}, {"TASK_TIMEOUT_EVALUATE_EDIT": "7"}, {})
    assert settings.task_timeouts == {"CREATE_EDIT": 5, "EVALUATE_EDIT": 7}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INVARLOCK_PREVIEW_WINDOWS", "-1"),
        ("TASK_TIMEOUT_DEFAULT", "10000000000"),
        ("RETRY_BACKOFF_MAX", "1e300"),
        ("LEASE_WAIT", "inf"),
        ("INVARLOCK_FINAL_WINDOWS", "0"),
        ("INVARLOCK_SEQ_LEN", "12.5"),
        ("INVARLOCK_STRIDE", "many"),
        ("INVARLOCK_TIER", "lenient"),
        ("PACK_DETERMINISM", "sometimes"),
        ("PACK_NET", "maybe"),
        ("CLEAN_EDIT_RUNS", "-3"),
        ("MIN_FREE_DISK_GB", "nan"),
        ("MIN_FREE_DISK_GB", "-1"),
        ("CUDA_MEMORY_FRACTION", "1.5"),
        ("NUM_GPUS", "-1"),
        ("PACK_USE_BATCH_EDITS", "perhaps"),
        ("INVARLOCK_DATASET", "novels"),
        ("TASK_TIMEOUT_DEFAULT", "-5"),
    ],
)
def test_wrong_values_are_named(name: str, value: str) -> None:
    text = refusal(environ={name: value})
    assert f"{name}={value!r}" in text and "environment" in text


def test_all_wrong_values_are_named_at_once() -> None:
    text = refusal({"seq_len": 0, "tier": "x"}, {"INVARLOCK_STRIDE": "-1"})
    assert all(part in text for part in ("seq_len=0 (params)", "tier='x'", "INVARLOCK_STRIDE='-1' (environment)"))


def test_true_is_no_number() -> None:
    assert "seq_len=True" in refusal({"seq_len": True})


def test_unknown_names() -> None:
    assert "did you mean 'seq_len'" in refusal({"seq_lenn": 3})
    assert "unknown task type 'FLY'" in refusal(environ={"TASK_TIMEOUT_FLY": "3"})
    assert "'sequence'" in refusal(suite={"sequence": 3})
    assert resolve({"zzz": None}, {"from_rest_api": True}, {"PACK_ZZZ": "1"}, {}) == Settings()


def test_key_material_is_refused_and_never_repeated() -> None:
    text = refusal(environ={"PACK_SIGNING_KEY": PEM})
    assert "path of a PEM file" in text and "secret" not in text
    assert "PACK_SIGNING_KEY" in refusal({"signing_key": PEM})
    assert "secret" not in refusal({"signing_key": PEM})


def test_signing_key_comes_from_the_environment_only() -> None:
    assert "cannot be set by params" in refusal({"signing_key": "/keys/k.pem"})
    assert from_env(PACK_SIGNING_KEY="/keys/k.pem").signing_key == "/keys/k.pem"


def test_paths_become_absolute(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = from_env(PACK_TEXT_PATH="a.txt", INVARLOCK_LOCAL_JSONL_DATA_FILES="x/*.jsonl, /y.jsonl")
    assert settings.text_path == str(tmp_path / "a.txt")
    assert settings.local_jsonl_data_files == (str(tmp_path / "x/*.jsonl"), "/y.jsonl")


def test_lists_with_commas_or_as_lists() -> None:
    assert from_env(PACK_GUARDS_ORDER="invariants, rmt").guards_order == ("invariants", "rmt")
    assert resolve({"scenarios": ["a", "b"]}, {}, {}, {}).scenarios == ("a", "b")
    assert from_env(CUDA_VISIBLE_DEVICES="").cuda_visible_devices == ()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        from_env().seq_len = 3  # type: ignore[misc]


def test_suite_name_is_found_before_the_rest() -> None:
    assert peek_suite({"suite": "a"}, {"suite": "b"}, {"PACK_SUITE": "c"}) == "a"
    assert peek_suite({"suite": None}, {"suite": "b"}, {"PACK_SUITE": "c"}) == "b"
    assert peek_suite({}, {}, {"PACK_SUITE": "c"}) == "c"
    assert peek_suite({}, {}, {}) == "subset"


def test_given_fields_are_the_explicit_ones() -> None:
    assert given_fields({"INVARLOCK_SEQ_LEN": 3, "stride": None, "tier": "", "model_1": ""}) == {"seq_len", "model_1"}


def test_damaged_settings_file() -> None:
    value = Settings().to_json()
    with pytest.raises(EvidenceError, match="settings"):
        Settings.parse(json.dumps({**value, "seq_len": "long"}).encode())
    with pytest.raises(EvidenceError, match="settings"):
        Settings.parse(json.dumps({**value, "new": 1}).encode())


@given(
    params=st.fixed_dictionaries(
        {},
        optional={
            "seq_len": st.integers(2, 10**6),
            "min_free_disk_gb": st.floats(0, 1e6),
            "tier": st.sampled_from(["conservative", "balanced", "aggressive"]),
            "scenarios": st.lists(st.text(min_size=1), min_size=1),
            "num_gpus": st.one_of(st.none(), st.integers(0, 64)),
            "task_timeouts": st.dictionaries(st.sampled_from(["CREATE_EDIT", "build_pack"]), st.integers(0, 9999)),
            "model_3": st.text(),
        },
    )
)
def test_frozen_settings_come_back_equal(params: dict[str, Any]) -> None:
    settings = resolve(params, {}, {}, {})
    again = Settings.parse(json.dumps(settings.to_json()).encode())
    assert again == settings
    assert again.digest() == settings.digest()


def test_a_copy_without_directories_has_the_digest_of_the_original() -> None:
    settings = Settings(text_path="/data/texts/plays", output_dir="/runs/one", models=("/models/tiny", "org/name"))
    copy = portable(settings.to_json())
    assert (copy["text_path"], copy["output_dir"], copy["models"]) == ("plays", "one", ["tiny", "org/name"])
    assert Settings.parse(canonical_json(copy)).digest() == settings.digest()
    assert settings.digest() != settings.model_copy(update={"seq_len": 64}).digest()


def test_unknown_variables_and_the_names_they_are_near_to() -> None:
    environ = {
        "INVARLOCK_PREVEW_WINDOWS": "3",
        "PACK_MODEL": "foo",
        "PACK_QQQQQQQQ": "",
        "PACK_NET": "0",
        "INVARLOCK_SEQ_LEN": "8",
        "TASK_TIMEOUT_CREATE_EDIT": "9",
        "PATH": "/bin",
    }
    assert unknown_variables(environ) == {
        "INVARLOCK_PREVEW_WINDOWS": "INVARLOCK_PREVIEW_WINDOWS",
        "PACK_MODEL": "PACK_MODELS",
        "PACK_QQQQQQQQ": None,
    }

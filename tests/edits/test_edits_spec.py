import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.edit_spec import EditSpecError, ResolvedEdit, Scope, parse_edit_spec, parse_scope, resolve_edit
from evpack.errors import BadInput


def resolve(text, tuned=None, **options):
    return resolve_edit(parse_edit_spec(text), tuned, **options)


@pytest.mark.parametrize(
    ("text", "values", "directory"),
    [
        ("quant_rtn:8:all", {"bits": 8, "group_size": 128, "scope": "all"}, "quant_8bit_stress"),
        ("quant_rtn:4:32:ffn", {"bits": 4, "group_size": 32, "scope": "ffn"}, "quant_4bit_stress"),
        ("quant_rtn:4:0:attn", {"bits": 4, "group_size": 0, "scope": "attn"}, "quant_4bit_stress"),
        ("fp8_quant:e5m2:all", {"format": "e5m2", "scale": "none"}, "fp8_e5m2_stress"),
        ("fp8_quant:e4m3fnuz:ffn", {"format": "e4m3fnuz"}, "fp8_e4m3fnuz_stress"),
        ("magnitude_prune:0.5:all", {"sparsity": 0.5}, "prune_50pct_stress"),
        ("magnitude_prune:0.29:ffn", {"sparsity": 0.29}, "prune_29pct_stress"),
        ("magnitude_prune:1:ffn", {"sparsity": 1.0}, "prune_100pct_stress"),
        ("lowrank_svd:32:ffn@layer=15", {"rank": 32, "scope": "ffn@layer=15"}, "svd_rank32_stress"),
    ],
)
def test_explicit_specs_resolve(text, values, directory):
    edit = resolve(text)
    assert edit.spec == text
    assert edit.edit_type == text.split(":")[0]
    assert edit.status == "selected"
    assert edit.edit_dir_name == directory
    assert {key: getattr(edit, key) for key in values} == values
    assert resolve(text, version="clean").edit_dir_name == directory.replace("stress", "clean")


def test_only_the_parameters_of_the_type_are_set():
    edit = resolve("magnitude_prune:0.5:all")
    assert (edit.bits, edit.group_size, edit.format, edit.rank) == (None, None, None, None)


def test_a_resolved_edit_survives_json():
    edit = resolve("quant_rtn:4:32:ffn@layers=3")
    assert ResolvedEdit.model_validate_json(edit.model_dump_json()) == edit


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid_edit_type"),
        ("quantize:8:all", "invalid_edit_type"),
        ("QUANT_RTN:8:all", "invalid_edit_type"),
        ("quant_rtn", "invalid_edit_spec"),
        ("quant_rtn:all", "invalid_edit_spec"),
        ("quant_rtn:8:32:64:all", "invalid_edit_spec"),
        ("magnitude_prune:0.5:32:all", "invalid_edit_spec"),
        ("quant_rtn:8:128", "invalid_scope"),
        ("quant_rtn:8:everything", "invalid_scope"),
        ("quant_rtn:8:", "invalid_scope"),
        ("quant_rtn:8:FFN", "invalid_scope"),
        ("quant_rtn:8:ffn@", "invalid_scope"),
        ("quant_rtn:8:ffn@layer", "invalid_scope"),
        ("quant_rtn:8:ffn@layer=x", "invalid_scope"),
        ("quant_rtn:8:ffn@layer=-1", "invalid_scope"),
        ("quant_rtn:8:ffn@layer=1,", "invalid_scope"),
        ("quant_rtn:8:ffn@5", "invalid_scope"),
        ("quant_rtn:8:ffn@layers=2,3", "invalid_scope"),
        ("quant_rtn:8:ffn@block=1", "invalid_scope"),
        ("quant_rtn:0:all", "invalid_quant_params"),
        ("quant_rtn:17:all", "invalid_quant_params"),
        ("quant_rtn:8.5:all", "invalid_quant_params"),
        ("quant_rtn:-4:all", "invalid_quant_params"),
        ("quant_rtn:eight:all", "invalid_quant_params"),
        ("quant_rtn:8:-1:all", "invalid_quant_params"),
        ("quant_rtn:clean:32:ffn", "invalid_quant_params"),
        ("quant_rtn:٤:all", "invalid_quant_params"),
        ("magnitude_prune:0:all", "invalid_prune_sparsity"),
        ("magnitude_prune:1.01:all", "invalid_prune_sparsity"),
        ("magnitude_prune:-0.1:all", "invalid_prune_sparsity"),
        ("magnitude_prune:nan:all", "invalid_prune_sparsity"),
        ("magnitude_prune:inf:all", "invalid_prune_sparsity"),
        ("magnitude_prune:half:all", "invalid_prune_sparsity"),
        ("lowrank_svd:0:all", "invalid_lowrank_rank"),
        ("lowrank_svd:3.5:all", "invalid_lowrank_rank"),
        ("fp8_quant:e3m4:all", "invalid_fp_format"),
        ("fp8_quant::all", "invalid_fp_format"),
    ],
)
def test_wrong_specs_are_bad_input_with_the_references_code(text, reason):
    with pytest.raises(EditSpecError) as caught:
        parse_edit_spec(text)
    assert isinstance(caught.value, BadInput)
    assert caught.value.reason == reason
    assert caught.value.status == "invalid"
    assert reason in caught.value.what
    assert repr(text) in caught.value.what
    assert caught.value.mend


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text):
    for spec in (text, f"quant_rtn:{text}", f"magnitude_prune:{text}:ffn", f"lowrank_svd:2:ffn@{text}"):
        try:
            assert parse_edit_spec(spec).text == spec
        except EditSpecError as error:
            assert error.mend


@pytest.mark.parametrize(
    ("text", "scope", "inside", "outside"),
    [
        ("ffn", Scope(kind="ffn"), [0, 5, 99], []),
        ("attn@layer=3", Scope(kind="attn", layers=(3,)), [3], [0, 2, 4]),
        ("all@layers=2", Scope(kind="all", below=2), [0, 1], [2, 3]),
        ("all@layer=5,layer=1,layer=5", Scope(kind="all", layers=(1, 5)), [1, 5], [0, 2]),
        ("all@layer=5,1", Scope(kind="all", layers=(1, 5)), [1, 5], [0, 2]),
        ("ffn@layers=1,layer=7", Scope(kind="ffn", layers=(7,), below=1), [0, 7], [1, 6]),
        ("ffn@layers=0", Scope(kind="ffn", below=0), [], [0, 1]),
    ],
)
def test_layer_modifiers_add_up(text, scope, inside, outside):
    assert parse_scope(text) == scope
    assert all(scope.admits(layer) for layer in inside)
    assert not any(scope.admits(layer) for layer in outside)


TUNED = {
    "quant_rtn": {"bits": 4, "group_size": 32, "scope": "ffn", "edit_dir_name": "quant_4bit_clean"},
    "fp8_quant": {"format": "e5m2", "scope": "ffn", "edit_dir_name": "fp8_e5m2_clean"},
    "magnitude_prune": {"sparsity": 0.12, "scope": "ffn", "edit_dir_name": "prune_12pct_clean"},
    "lowrank_svd": {"rank": 32, "scope": "ffn@layer=15", "edit_dir_name": "svd_rank32_l31_clean"},
}


@pytest.mark.parametrize("edit_type", TUNED)
def test_clean_specs_take_everything_from_the_tuned_entry(edit_type):
    entry = TUNED[edit_type] | {"status": "selected", "reason": "passes at 4/32"}
    edit = resolve(f"{edit_type}:clean:all", entry)
    assert edit.reason == "passes at 4/32"
    for key, value in TUNED[edit_type].items():
        assert getattr(edit, key) == value


def test_the_tuned_scope_wins_and_the_specs_scope_fills_in():
    entry = {"status": "selected", "sparsity": 0.1}
    assert resolve("magnitude_prune:clean:attn", entry).scope == "attn"
    assert resolve("magnitude_prune:clean:attn", entry | {"scope": "ffn@layer=2"}).scope == "ffn@layer=2"
    assert resolve("magnitude_prune:clean:attn", entry).edit_dir_name == "prune_10pct_clean"


def test_two_names_of_a_parameter_must_agree():
    entry = {"status": "selected", "bits": 4, "bitwidth": 4}
    assert resolve("quant_rtn:clean:ffn", entry).bits == 4
    with pytest.raises(EditSpecError, match="bits 4 and bitwidth 3 mean the same"):
        resolve("quant_rtn:clean:ffn", entry | {"bitwidth": 3})


def test_aliases_and_the_default_group_size():
    edit = resolve("quant_rtn:clean:ffn", {"status": "selected", "bitwidth": 4})
    assert (edit.bits, edit.group_size) == (4, 128)
    assert resolve("magnitude_prune:clean:ffn", {"status": "selected", "prune_level": 0.2}).sparsity == 0.2


def test_a_skipped_entry_is_carried_over():
    edit = resolve("lowrank_svd:clean:ffn", {"status": "skipped", "reason": "no rank passes"})
    assert (edit.status, edit.reason) == ("skipped", "no rank passes")


@pytest.mark.parametrize(
    ("entry", "status", "reason"),
    [
        (None, "missing", "missing_tuned_edit_params"),
        ({}, "missing", "missing_tuned_edit_params"),
        ({"status": "missing"}, "missing", "missing_tuned_edit_params"),
        ({"status": "failed", "bits": 4}, "invalid", "invalid_tuned_edit_params"),
        ({"status": "selected"}, "invalid", "invalid_quant_params"),
        ({"status": "selected", "bits": True}, "invalid", "invalid_quant_params"),
        ({"status": "selected", "bits": 4.0}, "invalid", "invalid_quant_params"),
        ({"status": "selected", "bits": 4, "group_size": None}, "invalid", "invalid_quant_params"),
        ({"status": "selected", "bits": 4, "scope": "layers"}, "invalid", "invalid_scope"),
        ({"status": "selected", "bits": 4, "scope": 3}, "invalid", "invalid_scope"),
        ({"status": "selected", "bits": 4, "edit_dir_name": "../out"}, "invalid", "invalid_tuned_edit_params"),
    ],
)
def test_an_unusable_tuned_entry_is_bad_input(entry, status, reason):
    with pytest.raises(EditSpecError) as caught:
        resolve("quant_rtn:clean:ffn", entry)
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert "quant_rtn:clean:ffn" in caught.value.what


def test_a_sparsity_beyond_what_a_float_holds_is_refused():
    with pytest.raises(EditSpecError, match="invalid_prune_sparsity"):
        resolve("magnitude_prune:clean:ffn", {"status": "selected", "sparsity": 10**400})


def test_an_explicit_spec_ignores_tuned_parameters():
    assert resolve("quant_rtn:8:all", {"status": "skipped"}).bits == 8

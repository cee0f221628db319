from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evpack.checkpoint.reader import Checkpoint, contents_of
from evpack.errors import CheckpointError
from evpack.guards import invariants
from evpack.guards.base import GuardResult
from evpack.guards.invariants_assess import failed, reference_result, report_block

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DOWN, NORM = "model.layers.0.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"
CONFIG = {"model_type": "llama", "vocab_size": 6, "num_hidden_layers": 1, "tie_word_embeddings": False}


def healthy() -> Tensors:
    import torch

    draw = torch.Generator().manual_seed(2)
    shapes = {EMBED: (6, 4), HEAD: (6, 4), DOWN: (4, 5), NORM: (4,)}
    return {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.items()}


class Disk:
    """Writes checkpoints below a directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def __call__(self, tensors: Tensors, **config: Any) -> Checkpoint:
        from safetensors.torch import save_file

        self.count += 1
        directory = self.root / str(self.count)
        directory.mkdir()
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(CONFIG | config))
        return Checkpoint(directory)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def judge(disk: Disk) -> Callable[..., GuardResult]:
    """Judge a change of the healthy tensors against the healthy baseline."""

    def run(change: Callable[[Tensors], object], declaration: Any = None, **config: Any) -> GuardResult:
        reference = contents_of(disk(healthy()))
        tensors = healthy()
        change(tensors)
        return invariants.validate(disk(tensors, **config), reference, declaration)

    return run


Judge = Callable[..., GuardResult]


def kinds(result: GuardResult) -> dict[str, str]:
    return {violation.type: violation.severity for violation in result.violations}


def set_element(name: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[0] = value

    return change


def test_the_baseline_itself_passes(judge: Judge) -> None:
    result = judge(lambda t: None)
    assert (result.status, result.action, result.violations, result.apart) == ("pass", "none", (), ())
    assert result.metrics["norm_tensors"] == 1
    assert result.metrics["parameter_count"] == 24 + 24 + 20 + 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_element_that_is_not_finite_is_fatal(judge: Judge, value: float) -> None:
    result = judge(set_element(DOWN, value))
    assert kinds(result) == {"non_finite_tensor": "fatal"}
    assert (result.status, result.passed, result.action) == ("fail", False, "abort")
    assert result.violations[0].tensors == (DOWN,)


def test_changes_outside_the_declaration_are_listed_apart_and_decide_nothing(judge: Judge) -> None:
    undeclared = judge(set_element(DOWN, 9.0))
    assert undeclared.status == "pass"
    assert [(v.type, v.tensors) for v in undeclared.apart] == [("undeclared_change", (DOWN,))]
    assert judge(set_element(DOWN, 9.0), {"tensors": [DOWN]}).apart == ()
    other = judge(set_element(DOWN, 9.0), {"tensors": [NORM]})
    assert [v.tensors for v in other.apart] == [(DOWN,)]


def test_a_declared_change_may_still_not_be_non_finite(judge: Judge) -> None:
    assert judge(set_element(DOWN, math.nan), {"tensors": [DOWN]}).status == "fail"


def test_lost_tensors_are_fatal_and_norms_are_named_as_such(judge: Judge) -> None:
    assert kinds(judge(lambda t: t.pop(DOWN))) == {"missing_tensor": "fatal"}
    assert kinds(judge(lambda t: t.pop(NORM))) == {"layer_norm_missing": "fatal"}


def test_extra_tensors_and_other_types_warn(judge: Judge) -> None:
    import torch

    assert kinds(judge(lambda t: t.update(extra=torch.ones(2)))) == {"extra_tensor": "warning"}
    assert kinds(judge(lambda t: t.update({DOWN: t[DOWN].float()}))) == {"dtype_changed": "warning"}


def test_an_extra_tensor_is_scanned_too(judge: Judge) -> None:
    import torch

    result = judge(lambda t: t.update(extra=torch.full((2,), math.nan)))
    assert kinds(result) == {"extra_tensor": "warning", "non_finite_tensor": "fatal"}


def test_other_shapes_are_fatal_and_rows_mean_another_vocabulary(judge: Judge) -> None:
    import torch

    assert kinds(judge(lambda t: t.update({DOWN: torch.ones(4, 6).bfloat16()}))) == {"shape_changed": "fatal"}
    grown = judge(lambda t: t.update({n: torch.cat([t[n], t[n]]) for n in (EMBED, HEAD)}), vocab_size=12)
    assert kinds(grown) == {"tokenizer_mismatch": "fatal"}


def test_fewer_rows_than_the_configuration_promises_are_fatal(judge: Judge) -> None:
    found = judge(lambda t: None, vocab_size=8)
    assert kinds(found) == {"tokenizer_mismatch": "fatal"}
    said = [violation.message for violation in found.violations]
    assert said == ["config vocab_size 6 became 8", f"{EMBED} has 6 rows, config vocab_size is 8"]


def test_tying_is_judged_from_configuration_and_keys_never_from_values(disk: Disk) -> None:
    untied = healthy()
    untied[HEAD] = untied[EMBED].clone()
    tied = {name: tensor for name, tensor in untied.items() if name != HEAD}
    reference_untied = contents_of(disk(untied))
    reference_tied = contents_of(disk(tied, tie_word_embeddings=True))
    to_tied = invariants.validate(disk(tied, tie_word_embeddings=True), reference_untied, None)
    to_untied = invariants.validate(disk(untied), reference_tied, None)
    for result in (to_tied, to_untied):
        assert kinds(result) == {"weight_tying_changed": "warning"}
        assert (result.status, result.passed, result.action) == ("warn", True, "warn")
    stays = invariants.validate(disk(untied, tie_word_embeddings=True), reference_untied, None)
    assert kinds(stays) == {"weight_tying_changed": "warning"}
    headless = invariants.validate(disk(tied), reference_tied, None)
    assert kinds(headless) == {"weight_tying_changed": "warning", "head_missing": "fatal"}


def test_a_silent_configuration_is_tied_exactly_without_a_stored_head(disk: Disk) -> None:
    tensors = healthy()
    del tensors[HEAD]
    reference = contents_of(disk(tensors, tie_word_embeddings=None))
    assert invariants.validate(disk(tensors, tie_word_embeddings=None), reference, None).status == "pass"


def test_other_configuration_values_warn_and_are_named(judge: Judge) -> None:
    result = judge(lambda t: None, num_hidden_layers=2, rope_theta=1.0)
    assert kinds(result) == {"config_changed": "warning"}
    assert "num_hidden_layers, rope_theta" in result.violations[0].message
    assert judge(lambda t: None, transformers_version="9").status == "pass"


def test_loading_findings_are_fatal(disk: Disk) -> None:
    baseline = disk(healthy())
    reference = contents_of(baseline)
    result = invariants.validate(baseline, reference, None, unexplained_keys=("missing: x",), load_error="boom")
    assert kinds(result) == {"load_failed": "fatal", "unexplained_keys": "fatal"}


def test_untouched_tensors_are_not_read(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = disk(healthy())
    reference = contents_of(baseline)
    tensors = healthy()
    set_element(DOWN, 3.0)(tensors)
    subject = disk(tensors)
    for name in subject.names():
        subject.tensor_digest(name)
    read: list[str] = []
    original = subject.read
    monkeypatch.setattr(subject, "read", lambda name: read.append(name) or original(name))
    invariants.validate(subject, reference, None)
    assert read == [DOWN]


def test_a_baseline_that_is_not_finite_is_refused_by_name(disk: Disk) -> None:
    tensors = healthy()
    invariants.require_finite(disk(tensors))
    set_element(NORM, math.nan)(tensors)
    with pytest.raises(CheckpointError, match=NORM):
        invariants.require_finite(disk(tensors))


def test_integers_and_small_floats_can_be_scanned(disk: Disk) -> None:
    import torch

    checkpoint = disk({"i": torch.arange(3), "f": torch.tensor([1.0, math.inf]).to(torch.float8_e5m2)})
    assert invariants.count_non_finite(checkpoint.read("i")) == 0
    assert invariants.count_non_finite(checkpoint.read("f")) == 1


def test_the_report_block_has_both_entries_and_counts(disk: Disk) -> None:
    reference = contents_of(disk(healthy()))
    tensors = healthy()
    set_element(DOWN, math.nan)(tensors)
    block = report_block(reference_result(reference), invariants.validate(disk(tensors), reference, None))
    assert (block["pre"], block["post"], block["status"]) == ("pass", "fail", "fail")
    assert [entry["phase"] for entry in block["details"]["entries"]] == ["pre", "post"]
    assert block["summary"]["fatal_violations"] == block["summary"]["violations_found"] == 1
    assert block["summary"]["undeclared_changes"] == 1
    json.dumps(block, allow_nan=False)


def test_a_guard_that_could_not_run_is_an_error(disk: Disk) -> None:
    result = failed("ValueError: odd")
    assert (result.status, result.passed) == ("error", False)
    assert "ValueError: odd" in result.violations[0].message

"""Edge risks against noise, listening to a model, and the RMT guard's decision."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.policy import resolve_policy
from evpack.errors import EvaluationError, EvidenceError
from evpack.evaluation.scoring import score_windows
from evpack.guards import rmt
from evpack.guards.hooks import Listener, edge_risk
from evpack.guards.hooks_records import ActivationRecords, ModuleActivations, evenly_spaced

POLICY = resolve_policy("balanced", "small")
EPSILON = POLICY.number("rmt.epsilon") * math.sqrt(4)
"""Of the four blocks below."""
EPSILON_RMS = POLICY.number("rmt.epsilon_rms")
SEQ, WINDOWS = 12, 10


# --- edge risk ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "columns", "expected"), [(1024, 96, 0.978), (128, 576, 0.98), (512, 512, 0.99)])
def test_noise_lies_just_inside_the_edge(rows: int, columns: int, expected: float) -> None:
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))
    assert edge_risk(noise) == pytest.approx(expected, abs=0.02)
    assert edge_risk(noise * 37.0 + torch.linspace(-5, 5, columns)) == pytest.approx(edge_risk(noise), rel=1e-4)


def test_a_planted_direction_stands_out_by_its_known_strength() -> None:
    """A rank-one part of strength t in unit noise, below and above the threshold (Benaych-Georges, Nadakuditi 2012)."""
    rows, columns = 1000, 250
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(rows, columns, generator=draw)
    left, right = torch.randn(rows, generator=draw), torch.randn(columns, generator=draw)
    planted = torch.outer(left / left.norm(), right / right.norm())
    strength = 120.0
    expected = math.sqrt((strength**2 + rows) * (strength**2 + columns)) / strength
    edge = math.sqrt(rows) + math.sqrt(columns)
    spread = math.sqrt(1 + strength**2 / (rows * columns))
    assert edge_risk(noise + strength * planted) == pytest.approx(expected / spread / edge, rel=0.01)


def test_matrices_without_an_edge_risk() -> None:
    for matrix in (torch.full((4, 3), 2.0), torch.tensor([[1.0, math.nan], [0.0, 2.0]]), torch.zeros(5, 5)):
        assert math.isnan(edge_risk(matrix))


@given(st.integers(0, 40), st.integers(0, 12))
def test_samples_are_spread_and_never_repeat(total: int, count: int) -> None:
    chosen = evenly_spaced(total, count)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(total, count)
    assert all(0 <= position < total for position in chosen)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)


# --- listening ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes, **heads)).eval()


@pytest.mark.parametrize(
    ("model_type", "sizes", "name"),
    [
        ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder.layers.1.fc2"),
        ("falcon", {"ffn_hidden_size": 24}, "transformer.h.1.mlp.dense_4h_to_h"),
    ],
)
def test_projections_are_listened_to_whatever_they_are_called(
    model_type: str, sizes: dict[str, int], name: str, tokens: Any
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(model_type, **shape, max_position_embeddings=32, **sizes)
    found = listened(AutoModelForCausalLM.from_config(config).eval(), tokens, batch=5)
    assert found[name].kind == "linear" and found[name].target == "ffn"


@pytest.fixture(scope="module")
def tokens() -> Any:
    return torch.randint(0, 40, (WINDOWS, SEQ), generator=torch.Generator().manual_seed(2)).int().numpy()


def listened(model: Any, tokens: Any, batch: int, count: int = 4) -> dict[str, ModuleActivations]:
    listener = Listener(evenly_spaced(len(tokens), count))
    with listener.attached(model):
        score_windows(model, tokens, batch, SEQ - 1)
    return listener.modules()


def test_embedding_norms_and_the_blocks_projections_are_listened_to(model: Any, tokens: Any) -> None:
    found = listened(model, tokens, 4)
    kinds = {kind: sorted(n for n, m in found.items() if m.kind == kind) for kind in ("embedding", "norm", "linear")}
    assert kinds["embedding"] == ["model.embed_tokens"]
    assert len(kinds["norm"]) == 2 * 2 + 1 and "model.norm" in kinds["norm"]
    assert len(kinds["linear"]) == 2 * 7 and "lm_head" not in found
    targets = {name: module.target for name, module in found.items() if module.target}
    assert targets == {
        f"model.layers.{i}.{name}": part
        for i in range(2)
        for name, part in (("mlp.down_proj", "ffn"), ("self_attn.o_proj", "attn"))
    }


def test_learned_positions_are_the_same_for_every_window_of_a_batch(tokens: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=SEQ)
    module = listened(GPT2LMHeadModel(config).eval(), tokens, 4)["transformer.wpe"]
    assert (module.m, module.n) == (SEQ, 16)
    assert None not in module.edge_risk and len(set(module.edge_risk)) == 1


def test_figures_are_those_of_each_window_alone(model: Any, tokens: Any) -> None:
    found = listened(model, tokens, 4)["model.layers.1.mlp.down_proj"]
    assert (found.m, found.n, len(found.edge_risk)) == (SEQ, 16, 4)
    outputs: list[torch.Tensor] = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    score_windows(model, tokens[evenly_spaced(WINDOWS, 4)], 1, SEQ - 1)
    handle.remove()
    assert found.edge_risk == pytest.approx([edge_risk(out) for out in outputs], rel=1e-5)
    assert found.mean_square == pytest.approx([float(out.double().square().mean()) for out in outputs], rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_batch_does_not_change_the_figures_nor_the_losses(model: Any, tokens: Any, batch: int) -> None:
    reference, found = listened(model, tokens, 4), listened(model, tokens, batch)
    assert found.keys() == reference.keys()
    for name, module in found.items():
        assert (module.m, module.n) == (reference[name].m, reference[name].n)
        assert module.edge_risk == pytest.approx(reference[name].edge_risk, rel=1e-4)
    listener = Listener([0, 9])
    with listener.attached(model):
        losses = score_windows(model, tokens, batch, SEQ - 1)
    assert losses == score_windows(model, tokens, batch, SEQ - 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_non_finite_activations_have_no_figure(tokens: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    broken = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    found = listened(broken, tokens, 5)
    assert set(found["model.layers.0.mlp.down_proj"].edge_risk) == {None}
    assert set(found["model.layers.0.mlp.down_proj"].mean_square) == {None}
    assert None not in found["model.layers.0.mlp.gate_proj"].edge_risk


def test_what_goes_wrong_while_listening_is_said_afterwards_and_not_blamed_on_the_model(
    model: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> float:
        raise ZeroDivisionError("here")

    monkeypatch.setattr("evpack.guards.hooks.edge_risk", broken)
    listener = Listener([0])
    with listener.attached(model):
        assert len(score_windows(model, tokens, 5, SEQ - 1)) == WINDOWS
    with pytest.raises(EvaluationError, match="ZeroDivisionError: here"):
        listener.modules()


def test_a_run_that_was_not_scored_to_its_end_gives_nothing(model: Any, tokens: Any) -> None:
    listener = Listener([0, 9])
    with listener.attached(model):
        score_windows(model, tokens[:4], 2, SEQ - 1)
    with pytest.raises(EvaluationError, match="not scored"):
        listener.modules()


# --- the guard ------------------------------------------------------------------------------------
def module(risk: float | None, windows: int = 2, m: int = SEQ) -> ModuleActivations:
    return ModuleActivations(kind="linear", m=m, n=16, edge_risk=(risk,) * windows, mean_square=(1.0,) * windows)


def activations(side: str, risks: dict[str, float | None], **changes: Any) -> ActivationRecords:
    fields: dict[str, Any] = {
        "side": side,
        "run": 1,
        "windows_digest": "w",
        "checkpoint_digest": side,
        "windows": (3, 7),
        "contract": {"kind": "test"},
        "modules": {name: module(risk) for name, risk in risks.items()},
    }
    return ActivationRecords(**fields | changes)


NAMES = [f"model.layers.{i}.mlp.down_proj" for i in range(4)]
BASELINE = activations("baseline", dict.fromkeys(NAMES, 2.0))


def moved(*logs: float) -> ActivationRecords:
    return activations("subject", {name: 2.0 * math.exp(d) for name, d in zip(NAMES, logs, strict=True)})


def test_equal_activations_pass() -> None:
    result, block = rmt.assess(moved(0, 0, 0, 0), BASELINE, POLICY)
    assert (result.status, block["rms_log_ratio"], block["trimmed_mean_log_ratio"]) == ("pass", 0.0, 0.0)
    assert block["stable"]


@given(st.lists(st.floats(-0.1, 0.1), min_size=4, max_size=4))
def test_both_statistics_count_in_either_direction_and_each_has_its_limit(logs: list[float]) -> None:
    rms, trimmed = math.sqrt(sum(d * d for d in logs) / 4), sum(map(abs, logs)) / 4  # of four, none is left out
    result, block = rmt.assess(moved(*logs), BASELINE, POLICY)
    mirrored = rmt.assess(moved(*(-d for d in logs)), BASELINE, POLICY)[1]
    for found in (block, mirrored):
        assert found["rms_log_ratio"] == pytest.approx(rms, abs=1e-12)
        assert found["trimmed_mean_log_ratio"] == pytest.approx(trimmed, abs=1e-12)
    if abs(trimmed - EPSILON) > 1e-9 and abs(rms - EPSILON_RMS) > 1e-9:
        assert result.passed is (trimmed <= EPSILON and rms <= EPSILON_RMS)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_trimmed_mean_leaves_out_the_largest_fifth_and_never_all(sizes: list[float]) -> None:
    kept = sorted(sizes)[: len(sizes) - math.floor(0.2 * len(sizes) + 1e-9)]
    assert rmt.trimmed_mean([-size for size in sizes]) == pytest.approx(sum(kept) / len(kept))


def test_one_module_that_moved_far_among_many_is_seen_though_the_trimmed_mean_leaves_it_out() -> None:
    names = [f"model.layers.{i}.mlp.down_proj" for i in range(10)]
    baseline = activations("baseline", dict.fromkeys(names, 2.0))
    subject = activations("subject", dict.fromkeys(names, 2.0) | {names[2]: 2.4})
    result, block = rmt.assess(subject, baseline, POLICY)
    assert (result.status, [v.type for v in result.violations]) == ("fail", ["edge_risk_moved_far"])
    assert block["trimmed_mean_log_ratio"] == 0.0
    assert block["top_modules"][0]["module"] == names[2]


def test_many_modules_that_moved_a_little_are_seen_though_the_root_mean_square_is_small() -> None:
    result, block = rmt.assess(moved(*[EPSILON * 1.1] * 4), BASELINE, POLICY)
    assert (result.status, [v.type for v in result.violations]) == ("fail", ["edge_risk_moved"])
    assert block["rms_log_ratio"] < EPSILON_RMS


def test_the_limit_of_the_trimmed_mean_grows_with_the_root_of_the_blocks() -> None:
    per_block = POLICY.number("rmt.epsilon")
    for blocks in (1, 9):
        names = [
            f"model.layers.{i % blocks}.{part}" for i in range(blocks) for part in ("mlp.up_proj", "mlp.down_proj")
        ]
        baseline = activations("baseline", dict.fromkeys(names, 2.0))
        for size, passes in ((0.99, True), (1.01, False)):
            risk = 2.0 * math.exp(size * per_block * math.sqrt(blocks))
            result, block = rmt.assess(activations("subject", dict.fromkeys(names, risk)), baseline, POLICY)
            assert (result.passed, block["blocks"]) == (passes, blocks)
            assert block["epsilon"] == pytest.approx(per_block * math.sqrt(blocks))
    assert rmt.block_count(["model.embed_tokens", "model.norm"]) == 1


def test_a_clean_edit_that_lowers_rank_has_an_epsilon_of_its_own() -> None:
    own = POLICY.number("rmt.epsilon_lower_rank")
    subject = moved(*[(EPSILON_RMS + own) / 2] * 4)
    assert rmt.assess(subject, BASELINE, POLICY)[0].status == "fail"
    assert rmt.assess(subject, BASELINE, POLICY, lowers_rank=True)[0].status == "pass"
    assert rmt.assess(moved(*[own * 1.1] * 4), BASELINE, POLICY, lowers_rank=True)[0].status == "fail"


@pytest.mark.parametrize("lost", [None, 0.0])
def test_a_module_that_the_baseline_scores_and_the_subject_does_not_fails(lost: float | None) -> None:
    subject = activations("subject", {**dict.fromkeys(NAMES, 2.0), NAMES[1]: lost})
    result, _ = rmt.assess(subject, BASELINE, POLICY)
    assert [(v.type, v.tensors) for v in result.violations] == [("edge_risk_lost", (NAMES[1],))]
    assert rmt.assess(activations("subject", {}), BASELINE, POLICY)[0].status == "fail"


def test_other_numbers_of_rows_are_no_comparison() -> None:
    other = {name: module(2.0, m=5) for name in NAMES}
    result, _ = rmt.assess(activations("subject", {}, modules=other), BASELINE, POLICY)
    assert [v.type for v in result.violations] == ["rows_changed"]


@pytest.mark.parametrize(
    "change", [{"windows": (3, 8)}, {"windows_digest": "v"}, {"run": 2}, {"contract": {"kind": "other"}}]
)
def test_other_windows_or_another_way_of_measuring_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match=next(iter(change))):
        rmt.assess(activations("subject", dict.fromkeys(NAMES, 2.0), **change), BASELINE, POLICY)


def test_a_baseline_without_any_figure_cannot_judge() -> None:
    with pytest.raises(EvidenceError, match="cannot judge"):
        rmt.assess(moved(0, 0, 0, 0), activations("baseline", {}), POLICY)


def test_a_family_of_the_baseline_without_any_figure_cannot_judge_either() -> None:
    silent = dict.fromkeys(NAMES, 2.0) | dict.fromkeys((f"model.layers.{i}.self_attn.o_proj" for i in range(4)), None)
    with pytest.raises(EvidenceError, match="family 'attn' has an edge risk"):
        rmt.assess(activations("subject", silent), activations("baseline", silent), POLICY)


def test_records_survive_a_file_and_malformed_ones_are_refused() -> None:
    subject = moved(0.1, -0.1, 0, 0)
    data = json.dumps(subject.to_json()).encode()
    assert ActivationRecords.parse(data, "x") == subject
    json.dumps(rmt.assess(subject, BASELINE, POLICY)[1], allow_nan=False)
    for wrong in (data.replace(b"[3, 7]", b"[3]"), data.replace(b'"n": 16', b'"n": "16"'), b"{}"):
        with pytest.raises(EvidenceError):
            ActivationRecords.parse(wrong, "x")

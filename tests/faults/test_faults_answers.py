"""Each fault's arithmetic on small tensors with answers worked out by hand."""

import json
import math

import pytest
import torch  # noqa: TID253

from evpack.checkpoint.container import same_bytes
from evpack.errors import CheckpointError
from evpack.faults.injection import Figures

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.layers.0.input_layernorm.weight"


def query(layer):
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def test_extreme_quant_rounds_to_two_bits_half_to_even(checkpoint_of, inject):
    # s = 4 / 2 = 2: 4 -> 2 -> clamped 1; -4 -> -2; 1 -> 0.5 -> 0; 3 -> 1.5 -> 2 -> 1; -3 -> -1.5 -> -2; -1 -> 0
    weight = torch.tensor([[4.0, -4.0, 1.0], [3.0, -3.0, -1.0]])
    tensors = {query(0): weight, EMBED: torch.tensor([[0.5, 0.2]]), NORM: torch.ones(3)}
    variant = inject(checkpoint_of(tensors), "extreme_quant")
    assert variant.read(query(0)).tolist() == [[2.0, -4.0, 0.0], [2.0, -4.0, 0.0]]
    assert variant.read(EMBED).tolist() == [[0.25, 0.25]]  # s = 0.25: 2 -> 1, 0.8 -> 1
    assert set(variant.variant.changed) == {query(0), EMBED}
    assert variant.variant.metadata["quantized_params"] == 2


def test_extreme_quant_names_a_tensor_it_cannot_handle(checkpoint_of, inject):
    with pytest.raises(CheckpointError, match=r"q_proj\.weight.* F8_E5M2"):
        inject(checkpoint_of({query(0): torch.ones(2, 2).to(torch.float8_e5m2)}), "extreme_quant")


def test_rank_collapse_keeps_first_column_first_row_and_norm(checkpoint_of, inject):
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # outer([1, 3], [1, 2]) = [[1, 2], [3, 6]], norms sqrt 30, sqrt 50
    variant = inject(checkpoint_of({query(0): weight}), "rank_collapse")
    expected = torch.tensor([[1.0, 2.0], [3.0, 6.0]]) * math.sqrt(30 / 50)
    assert torch.allclose(variant.read(query(0)), expected, rtol=1e-6)
    before, after = (variant.variant.metadata[key]["frobenius"] for key in ("before", "after"))
    assert before == pytest.approx(math.sqrt(30)) and after == pytest.approx(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rank_collapse_survives_the_cast(checkpoint_of, inject, dtype):
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    after = inject(checkpoint_of({query(0): weight}), "rank_collapse").read(query(0)).double()
    sigma = torch.linalg.svdvals(after)
    assert sigma[1] < 0.02 * sigma[0]
    assert float(after.norm() / weight.double().norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("error_type", "count"), [("rank_collapse", 8), ("norm_collapse", 32)])
def test_collapses_take_the_first_attention_matrices_in_order_of_blocks(checkpoint_of, inject, error_type, count):
    generator = torch.Generator().manual_seed(1)
    tensors = {query(layer): torch.randn(4, 4, generator=generator) for layer in range(40)}
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.ones(4, 4)
    variant = inject(checkpoint_of(tensors), error_type)
    assert set(variant.variant.changed) == {query(layer) for layer in range(count)}
    metadata = variant.variant.metadata
    assert [target["block"] for target in metadata["targets"]] == list(range(count))
    if error_type == "norm_collapse":
        assert metadata["after"]["frobenius"] == 0.0
        assert not any(bool(variant.read(name).any()) for name in variant.variant.changed)


def test_norm_noise_is_seeded_by_name_and_relative(checkpoint_of, inject, tmp_path):
    names = [NORM, "model.norm.weight"]
    tensors = {name: torch.full((4096,), 2.0) for name in names} | {"model.norm.bias": torch.ones(4)}
    checkpoint = checkpoint_of(tensors)
    variant = inject(checkpoint, "rmt_norm_noise")
    assert set(variant.variant.changed) == set(names)
    noises = [(variant.read(name) / 2.0 - 1.0) / 0.1 for name in names]
    for noise in noises:
        assert abs(float(noise.mean())) < 0.08 and float(noise.std()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(*noises)
    metadata = variant.variant.metadata
    assert (metadata["seed"], metadata["amplitude"], metadata["norm_weights"]) == (0, 0.1, 2)
    variant.path.rename(tmp_path / "first")
    again = inject(checkpoint, "rmt_norm_noise")
    for name in names:
        assert again.tensor_digest(name) == variant.tensor_digest(name)


@pytest.mark.parametrize("tied", [True, False])
def test_shape_mismatch_adds_eight_mean_rows_wherever_the_vocabulary_is_stored(checkpoint_of, inject, tied):
    tensors = {EMBED: torch.tensor([[1.0, 2.0], [3.0, 6.0]]), NORM: torch.ones(2)}
    if not tied:
        tensors |= {HEAD: torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "lm_head.bias": torch.tensor([1.0, 2.0])}
    variant = inject(checkpoint_of(tensors, vocab_size=2, tie_word_embeddings=tied), "shape_mismatch")
    assert variant.config()["vocab_size"] == 10
    assert variant.read(EMBED).tolist() == [[1.0, 2.0], [3.0, 6.0], *[[2.0, 4.0]] * 8]
    assert set(variant.variant.changed) == set(tensors) - {NORM}
    if not tied:
        assert variant.read(HEAD)[2:].tolist() == [[0.5, 0.0]] * 8
        assert variant.read("lm_head.bias").tolist() == [1.0, 2.0, *[1.5] * 8]
    metadata = variant.variant.metadata
    assert (metadata["old_rows"], metadata["new_rows"], metadata["delta"]) == (2, 10, 8)


def test_shape_mismatch_holds_the_embedding_and_the_longer_one_only(checkpoint_of, inject, monkeypatch):
    def third(*_):
        raise AssertionError("a copy beside the two")

    checkpoint = checkpoint_of({EMBED: torch.ones(4, 4)}, vocab_size=4)
    monkeypatch.setattr(torch.Tensor, "clone", third)
    assert inject(checkpoint, "shape_mismatch").info(EMBED).shape == (12, 4)


def test_missing_tensors_drops_the_last_block_and_shortens_every_list_of_layers(checkpoint_of, inject):
    tensors = {query(layer): torch.ones(2, 2) for layer in range(12)} | {EMBED: torch.ones(2, 2)}
    config = {
        "num_hidden_layers": 12,
        "layer_types": [f"kind{layer}" for layer in range(12)],
        "mlp_only_layers": [1, 2],
        "architectures": ["X"] * 12,
        "sliding_window": 4096,
    }
    variant = inject(checkpoint_of(tensors, **config), "missing_tensors")
    assert variant.variant.removed == (query(11),)
    assert variant.names() == sorted(set(tensors) - {query(11)})
    assert variant.config() == config | {"num_hidden_layers": 11, "layer_types": config["layer_types"][:11]}
    metadata = variant.variant.metadata
    assert (metadata["layers_before"], metadata["layers_after"], metadata["dropped_layers"]) == (12, 11, [11])
    assert (metadata["target_param"], metadata["target_block"], metadata["target_count"]) == (query(11), 11, 1)
    (target,) = metadata["targets"]
    assert target["before"] == metadata["before"] and target["before"]["frobenius"] == 2.0 and target["after"] is None
    assert metadata["after"]["elements"] == 0
    assert sum(file.stat().st_size for file in variant.path.iterdir()) < 64_000


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_missing_tensors_shortens_the_count_under_every_familys_name(checkpoint_of, inject, key):
    checkpoint = checkpoint_of({query(layer): torch.ones(2, 2) for layer in range(3)}, **{key: 3})
    assert inject(checkpoint, "missing_tensors").variant.config_overrides == {key: 2}


@pytest.mark.parametrize("config", [{"num_hidden_layers": 2}, {"num_hidden_layers": 1}, {}])
def test_missing_tensors_needs_two_blocks_that_the_configuration_knows(checkpoint_of, inject, config):
    with pytest.raises(CheckpointError, match=r"two blocks|config\.json says"):
        inject(checkpoint_of({query(0): torch.ones(2, 2)}, **config), "missing_tensors")


def test_a_tied_head_is_stored_as_a_copy(checkpoint_of, inject):
    checkpoint = checkpoint_of({EMBED: torch.randn(4, 4), NORM: torch.ones(4)}, tie_word_embeddings=True)
    variant = inject(checkpoint, "weight_tying_break")
    assert same_bytes(variant.read(HEAD), checkpoint.read(EMBED))
    assert list(variant.variant.changed) == [HEAD]
    assert variant.variant.changed[HEAD].before_sha256 is None
    assert variant.config()["tie_word_embeddings"] is False
    assert variant.variant.metadata["mode"] == "untie"
    size = sum(file.stat().st_size for file in variant.path.iterdir())
    assert size <= checkpoint.info(EMBED).nbytes + 64_000


def test_a_head_of_its_own_is_dropped(checkpoint_of, inject):
    checkpoint = checkpoint_of({EMBED: torch.ones(4, 4), HEAD: torch.ones(4, 4)}, tie_word_embeddings=False)
    variant = inject(checkpoint, "weight_tying_break")
    assert variant.variant.removed == (HEAD,) and not variant.variant.changed
    assert variant.config()["tie_word_embeddings"] is True
    metadata = variant.variant.metadata
    assert (metadata["mode"], metadata["target_param"], metadata["target_block"]) == ("tie", HEAD, None)
    assert metadata["targets"][0]["after"] is None and metadata["before"]["elements"] == 16


@pytest.mark.parametrize("error_type", ["norm_collapse", "rank_collapse", "extreme_quant"])
@pytest.mark.parametrize("shape", [(4, 4), (0, 4)])
def test_a_matrix_that_the_damage_cannot_change_is_left_out_and_counted(checkpoint_of, inject, error_type, shape):
    tensors = {query(0): torch.zeros(shape), query(1): torch.randn(4, 4, generator=torch.Generator().manual_seed(1))}
    metadata = (variant := inject(checkpoint_of(tensors), error_type)).variant.metadata
    assert list(variant.variant.changed) == [query(1)]
    assert (metadata["target_param"], metadata["target_count"]) == (query(1), 1)
    if shape[0] or error_type == "extreme_quant":  # the collapses take no matrix of rank one or less in the first place
        assert metadata["unchanged_count"] == 1


def test_a_zero_norm_is_left_out_of_the_noise(checkpoint_of, inject):
    tensors = {NORM: torch.zeros(64), "model.norm.weight": torch.ones(64)}
    variant = inject(checkpoint_of(tensors), "rmt_norm_noise")
    assert list(variant.variant.changed) == ["model.norm.weight"]
    assert variant.variant.metadata["unchanged_count"] == 1


def test_damage_that_changes_no_tensor_at_all_does_not_show(checkpoint_of, inject):
    with pytest.raises(CheckpointError, match=r"norm_collapse does not show in tensor '.*layers\.0.*q_proj"):
        inject(checkpoint_of({query(layer): torch.zeros(4, 4) for layer in range(2)}), "norm_collapse")


@pytest.mark.parametrize("error_type", ["nan_injection", "norm_collapse", "rank_collapse", "extreme_quant"])
def test_whole_numbers_and_empty_tensors_are_no_place_for_damage(checkpoint_of, inject, error_type, tmp_path):
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' has element type I8, which .* cannot"):
        inject(checkpoint_of({query(0): torch.ones(4, 4, dtype=torch.int8)}), error_type)
    (tmp_path / error_type).rename(tmp_path / "whole")
    (tmp_path / "model").rename(tmp_path / "other")
    if error_type in ("nan_injection", "extreme_quant"):
        with pytest.raises(CheckpointError, match="does not show"):
            inject(checkpoint_of({query(0): torch.ones(0, 4)}), error_type)


def test_metadata_of_a_fault_of_many_tensors_stays_short(checkpoint_of, inject):
    tensors = {query(layer): torch.tensor([[1.0, 0.3]]) for layer in range(300)}
    variant = inject(checkpoint_of(tensors), "extreme_quant")
    metadata = variant.variant.metadata
    assert metadata["target_count"] == 300 and metadata["before"]["elements"] == 600
    assert len(json.dumps(metadata)) < 16_000


def test_figures_of_several_tensors_add_up_and_are_null_where_not_finite():
    one, other = torch.tensor([3.0, -4.0]), torch.tensor([[0.0, 12.0]])
    both = Figures.of(one).plus(Figures.of(other)).to_json()
    assert both == {"elements": 4, "non_finite": 0, "mean": 2.75, "max_abs": 12.0, "frobenius": 13.0}
    broken = Figures.of(torch.tensor([1.0, math.inf, math.nan])).to_json()
    assert broken == {"elements": 3, "non_finite": 2, "mean": None, "max_abs": None, "frobenius": None}

"""The spectral guard: what is capped, what is fatal, what a declaration excuses, and that nothing else is."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.edit_spec import ResolvedEdit
from evpack.catalog.policy import resolve_policy
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.writer import VariantWriter
from evpack.errors import EvidenceError
from evpack.guards import spectral
from evpack.guards.chain import Declaration
from evpack.guards.spectral_measure import measure_baseline, measure_subject
from evpack.guards.spectral_records import Collapse, MatrixRecord, SpectralRecords, family

FIXTURE = Path(str(resources.files("evpack.assets") / "fixture" / "model"))
POLICY = resolve_policy("balanced", "small")
DOWN = "model.layers.1.mlp.down_proj.weight"
CAP, FATAL = POLICY.number("spectral.ratio_cap"), POLICY.number("spectral.ratio_fatal")


def record(sigma: float | None = 2.0, frobenius: float | None = 6.0, **changes: Any) -> MatrixRecord:
    whole = Collapse(eligible=100, collapsed=0)
    return MatrixRecord(
        **{
            "dtype": "BF16",
            "shape": (8, 100),
            "tensor_sha256": "0" * 64,
            "sigma": sigma,
            "frobenius": frobenius,
            "rows": whole,
            "columns": whole,
        }
        | changes
    )


def records(side: str, missing: tuple[str, ...] = (), **matrices: MatrixRecord) -> SpectralRecords:
    contract = {"type": "test"}
    return SpectralRecords(side=side, checkpoint_digest=side, contract=contract, matrices=matrices, missing=missing)


BASELINE = records("baseline", **{f"m{i}": record() for i in range(8)})


def status(subject: SpectralRecords, declared: frozenset[str] = frozenset()) -> tuple[str, set[str]]:
    result, block = spectral.assess(subject, BASELINE, POLICY, declared_rank=declared)
    assert block["status"] == result.status
    return result.status, {violation.type for violation in result.violations}


def scaled(log_ratio: float) -> MatrixRecord:
    return record(2.0 * math.exp(log_ratio), 6.0 * math.exp(log_ratio))


# --- findings -------------------------------------------------------------------------------------
def test_an_unchanged_subject_passes() -> None:
    assert status(records("subject")) == ("pass", set())


@given(st.floats(-0.98 * CAP, 0.98 * CAP))
def test_small_changes_are_no_caps(log_ratio: float) -> None:
    assert status(records("subject", m0=scaled(log_ratio))) == ("pass", set())


@given(st.floats(1.02 * CAP, 0.98 * FATAL), st.sampled_from([-1, 1]))
def test_a_moderate_change_is_a_cap_in_either_direction(log_ratio: float, sign: int) -> None:
    subject = records("subject", m0=scaled(sign * log_ratio))
    assert status(subject) == ("warn", {"sigma_ratio_cap"})
    block = spectral.assess(subject, BASELINE, POLICY)[1]
    assert (block["caps_applied"], block["caps_exceeded"]) == (1, False)


@given(st.floats(1.02 * FATAL, 20.0), st.sampled_from([-1, 1]))
def test_one_huge_change_is_fatal_whatever_the_caps(log_ratio: float, sign: int) -> None:
    found, kinds = status(records("subject", m0=scaled(sign * log_ratio)))
    assert (found, "sigma_ratio_fatal" in kinds) == ("fail", True)


def test_more_caps_than_the_tier_allows_fail() -> None:
    for count, expected in ((5, "warn"), (6, "fail")):
        changed = {f"m{i}": scaled(0.3) for i in range(count)}
        assert status(records("subject", **changed))[0] == expected
    block = spectral.assess(records("subject", **changed), BASELINE, POLICY)[1]
    assert (block["caps_applied"], block["caps_exceeded"]) == (6, True)


def test_a_zeroed_matrix_is_fatal_and_finite() -> None:
    found, kinds = status(records("subject", m0=record(0.0, 0.0)))
    assert (found, kinds >= {"sigma_ratio_fatal"}) == ("fail", True)


@pytest.mark.parametrize("change", [{"sigma": None}, {"frobenius": None}])
def test_a_matrix_that_is_not_finite_fails(change: dict[str, None]) -> None:
    assert status(records("subject", m0=record(**change)))[0] == "fail"


def test_missing_and_reshaped_matrices_fail() -> None:
    assert status(records("subject", missing=("m0",))) == ("fail", {"matrix_missing"})
    assert status(records("subject", m0=record(shape=(9, 100)))) == ("fail", {"shape_changed"})


def test_a_matrix_without_a_reference_is_counted_and_decides_nothing() -> None:
    result, block = spectral.assess(records("subject", head=record()), BASELINE, POLICY)
    assert (result.status, block["summary"]["modules_without_reference"]) == ("pass", 1)


def test_stable_rank_drops_are_capped_then_fatal_unless_declared() -> None:
    for frobenius, expected in ((6.0 * math.sqrt(0.6), "pass"), (6.0 * math.sqrt(0.4), "warn"), (2.2, "fail")):
        subject = records("subject", m0=record(frobenius=frobenius))
        assert status(subject)[0] == expected
        assert status(subject, frozenset({"m0"}))[0] == "pass"
        assert status(subject, frozenset({"m1"}))[0] == expected


def test_a_declaration_of_rank_excuses_nothing_but_rank() -> None:
    assert status(records("subject", m0=scaled(2.0)), frozenset({"m0"}))[0] == "fail"


@pytest.mark.parametrize("side", ["rows", "columns"])
@pytest.mark.parametrize(("collapsed", "expected"), [(1, "pass"), (4, "pass"), (5, "fail"), (100, "fail")])
def test_norm_collapse_needs_a_twentieth_of_the_rows_or_columns(side: str, collapsed: int, expected: str) -> None:
    change = {side: Collapse(eligible=100, collapsed=collapsed)}
    assert status(records("subject", m0=record(**change)))[0] == expected


def test_a_largest_norm_is_fatal_when_the_policy_has_one() -> None:
    leaf = POLICY.thresholds["spectral.max_spectral_norm"].model_copy(update={"value": 2.02})
    policy = POLICY.model_copy(update={"thresholds": POLICY.thresholds | {"spectral.max_spectral_norm": leaf}})
    result, _ = spectral.assess(records("subject", m0=scaled(0.04)), BASELINE, policy)
    assert [violation.type for violation in result.violations] == ["max_spectral_norm"]


def test_figures_found_in_two_ways_are_not_compared() -> None:
    other = BASELINE.model_copy(update={"contract": {"type": "other"}})
    with pytest.raises(EvidenceError, match="redo calibrate"):
        spectral.assess(records("subject"), other, POLICY)


def test_the_block_is_json_whatever_happened() -> None:
    for change in (record(None, None), record(0.0, 0.0), scaled(30.0), scaled(0.0)):
        json.dumps(spectral.assess(records("subject", m0=change), BASELINE, POLICY)[1], allow_nan=False)


# --- families -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.mlp.gate_proj.weight", "ffn"),
        ("model.layers.0.mlp.down_proj.weight", "ffn"),
        ("model.layers.0.self_attn.q_proj.weight", "attn"),
        ("model.layers.0.block_sparse_moe.gate.weight", "router"),
        ("model.layers.0.block_sparse_moe.experts.3.w2.weight", "expert_ffn"),
        ("model.layers.0.mlp.experts.down_proj[2]", "expert_ffn"),
        ("model.embed_tokens.weight", "embed"),
        ("lm_head.weight", "other"),
    ],
)
def test_families(name: str, expected: str) -> None:
    assert family(name) == expected


# --- measuring ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(FIXTURE)


@pytest.fixture(scope="module")
def baseline(checkpoint: Checkpoint) -> SpectralRecords:
    return measure_baseline(checkpoint, POLICY)


def variant(checkpoint: Checkpoint, directory: Path, change: Any, *names: str, **options: Any) -> DeltaCheckpoint:
    with VariantWriter(directory, checkpoint, list(names)) as writer:
        for name in names:
            before = checkpoint.read(name)
            writer.put(name, before, change(before.clone().float()).to(before.dtype))
        return writer.finish(scenario="s", kind="edit", declaration=None, metadata={}, **options)


def judged(checkpoint: Checkpoint, baseline: SpectralRecords, subject: DeltaCheckpoint) -> tuple[str, dict[str, Any]]:
    result, block = spectral.assess(measure_subject(subject, checkpoint, POLICY), baseline, POLICY)
    return result.status, block


def test_the_baseline_has_every_matrix_and_survives_a_file(checkpoint: Checkpoint, baseline: SpectralRecords) -> None:
    assert baseline.matrices.keys() == {n for n in checkpoint.names() if len(checkpoint.info(n).shape) == 2}
    record_ = baseline.matrices[DOWN]
    values = torch.linalg.svdvals(checkpoint.read(DOWN).double())
    assert record_.sigma == pytest.approx(float(values[0]), rel=1e-4)
    assert record_.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-4)
    assert SpectralRecords.parse(json.dumps(baseline.to_json()).encode(), "x") == baseline


@pytest.mark.parametrize("tier", ["conservative", "aggressive"])
def test_a_narrower_scope_measures_the_feed_forward_weights_only(checkpoint: Checkpoint, tier: str) -> None:
    found = measure_baseline(checkpoint, resolve_policy(tier, "small")).matrices
    assert found and {family(name) for name in found} == {"ffn"}


def test_only_what_changed_is_measured(checkpoint: Checkpoint, baseline: SpectralRecords, tmp_path: Path) -> None:
    subject = variant(checkpoint, tmp_path, lambda t: t * 2, DOWN)
    assert set(measure_subject(subject, checkpoint, POLICY).matrices) == {DOWN}
    found, block = judged(checkpoint, baseline, subject)
    assert (found, block["caps_applied"]) == ("warn", 1)
    assert block["top_violations"][0]["log_ratio"] == pytest.approx(math.log(2), rel=1e-3)
    assert block["summary"]["median_sigma_ratio"] == 1.0


def test_one_tensor_times_a_hundred_fails(checkpoint: Checkpoint, baseline: SpectralRecords, tmp_path: Path) -> None:
    found, block = judged(checkpoint, baseline, variant(checkpoint, tmp_path, lambda t: t * 100, DOWN))
    assert (found, block["caps_applied"]) == ("fail", 1)


def test_collapsed_rows_fail_and_a_single_weak_column_does_not(
    checkpoint: Checkpoint, baseline: SpectralRecords, tmp_path: Path
) -> None:
    def rows(tensor: torch.Tensor) -> torch.Tensor:
        tensor[: len(tensor) // 8] *= 0.001
        return tensor

    def column(tensor: torch.Tensor) -> torch.Tensor:
        tensor[:, int(tensor.norm(dim=0).argmin())] = 0.0
        return tensor

    for change, expected in ((rows, "fail"), (column, "pass")):
        directory = tmp_path / change.__name__
        directory.mkdir()
        assert judged(checkpoint, baseline, variant(checkpoint, directory, change, DOWN))[0] == expected


def test_a_removed_and_a_broken_matrix_fail(checkpoint: Checkpoint, baseline: SpectralRecords, tmp_path: Path) -> None:
    for name, change, options in (
        ("gone", lambda t: t * 1.001, {"removed": ("model.layers.0.mlp.up_proj.weight",)}),
        ("nan", lambda t: t.index_fill_(0, torch.tensor([0]), math.nan), {}),
    ):
        directory = tmp_path / name
        directory.mkdir()
        assert judged(checkpoint, baseline, variant(checkpoint, directory, change, DOWN, **options))[0] == "fail"


def test_a_declaration_comes_from_a_clean_edit_that_lowers_rank(checkpoint: Checkpoint) -> None:
    edit = ResolvedEdit(spec="lowrank_svd:clean:ffn", edit_type="lowrank_svd", scope="ffn@layer=1", rank=4)
    declared = Declaration.of(edit, checkpoint, clean=True).lowers_rank_of
    assert DOWN in declared and len(declared) == 3
    assert (
        Declaration.of(edit, checkpoint, clean=False) == Declaration.of(None, checkpoint, clean=True) == Declaration()
    )


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"schema": "x"}', b'{"schema": 1, "schema": 2}', b"NaN", b""])
def test_malformed_records_are_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        SpectralRecords.parse(data, "records")

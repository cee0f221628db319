"""Ladders: every rung can be planned, strength grows, shares become numbers of the model at hand."""

from __future__ import annotations

import pytest

from evpack.assets import fixture_model
from evpack.catalog.edit_spec import EDIT_TYPES, EditType, parse_scope
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.scope import select
from evpack.tuning.ladder import ladder, parameters_of, words


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(fixture_model())


@pytest.mark.parametrize("kind", EDIT_TYPES)
def test_rungs_are_distinct_and_in_scope(kind: EditType, checkpoint: Checkpoint) -> None:
    rungs = ladder(kind, checkpoint)
    assert len({words(rung) for rung in rungs}) == len(rungs) >= 5
    for rung in rungs:
        assert rung.status == "selected" and rung.edit_type == kind
        assert parameters_of(rung)
        assert select(checkpoint, parse_scope(rung.scope))


def test_strength_grows(checkpoint: Checkpoint) -> None:
    bits = [rung.bits or 0 for rung in ladder("quant_rtn", checkpoint)]
    sparsity = [rung.sparsity or 0 for rung in ladder("magnitude_prune", checkpoint)]
    ranks = [rung.rank or 0 for rung in ladder("lowrank_svd", checkpoint)]
    assert bits == sorted(bits, reverse=True) and sparsity == sorted(sparsity) and ranks == sorted(ranks, reverse=True)


def test_shares_of_the_fixture(checkpoint: Checkpoint) -> None:
    """4 blocks of width 96: the middle one is 2, and ranks are shares of 96."""
    rungs = ladder("lowrank_svd", checkpoint)
    assert {rung.scope for rung in rungs} == {"ffn@layer=2"}
    assert [rung.rank for rung in rungs][:3] == [72, 48, 24] and rungs[-1].rank == 1

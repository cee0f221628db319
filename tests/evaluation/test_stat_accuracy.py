"""Next-token accuracy beside perplexity: known answers, and a gate that only ever adds to the one on perplexity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.policy import resolve_policy
from evpack.errors import EvidenceError
from evpack.evaluation.assess import assess
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.scoring import score_windows, window_losses
from evpack.files import canonical_json

SMALL = resolve_policy("balanced", "small")
TOKENS = 1250
LIMIT = -1.1
"""delta_min_pp -1.0 of tier balanced, less its hysteresis of 0.1."""

Raw = Callable[..., dict[str, Any]]


def counted(raw: Raw, correct: Sequence[int | None], *, side: str = "subject", losses: Any = None) -> WindowRecords:
    document = raw(losses or [3.0] * len(correct), side=side, tokens=TOKENS)
    for window, count in zip(document["windows"], correct, strict=True):
        if count is not None:
            window["correct"] = count
    return WindowRecords.parse(canonical_json(document), "records")


def judged(raw: Raw, ours: Sequence[int | None], theirs: Sequence[int | None], **changes: Any) -> Any:
    return assess(counted(raw, ours, **changes), counted(raw, theirs, side="baseline"), SMALL)


def test_known_answer_with_two_windows_per_arm(raw: Raw) -> None:
    # changes of -10, 0, 0, 10 of 1250 tokens: 0 pp on average, sd 0.6531973 pp, t(3) 3.1824463, half width 1.0393826
    found = judged(raw, [490, 500, 500, 510], [500, 500, 500, 500]).accuracy
    assert found["ci"] == pytest.approx([-1.0393826, 1.0393826], abs=1e-6)
    assert (found["delta_pp"], found["outcome"], found["acceptable"]) == (pytest.approx(0.0), "accept", True)
    assert (found["preview"], found["final"]) == (pytest.approx(39.6), pytest.approx(40.4))
    assert (found["baseline_preview"], found["baseline_final"]) == (40.0, 40.0)
    assert found["delta_min_pp_with_hysteresis"] == pytest.approx(LIMIT)
    assert found["examples"] == {"used": 2500, "required": 200, "ok": True}


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [([500] * 4, "accept"), ([487] * 4, "accept"), ([486] * 4, "reject"), ([474, 500, 474, 500], "inconclusive")],
)
def test_the_whole_interval_decides(raw: Raw, ours: list[int], outcome: str) -> None:
    found = judged(raw, ours * 16, [500] * 64)
    assert found.accuracy["outcome"] == outcome
    assert found.outcome == "accept"
    assert found.validation["primary_metric_acceptable"] is (outcome == "accept")


def test_where_nothing_is_counted_nothing_is_said(raw: Raw) -> None:
    found = judged(raw, [None] * 64, [None] * 64)
    assert found.accuracy is None and found.validation["primary_metric_acceptable"] is True


@pytest.mark.parametrize(
    ("ours", "theirs"), [([None] * 4, [50] * 4), ([50] * 4, [None] * 4), ([50] * 3 + [None], [50] * 4)]
)
def test_counts_that_are_missing_never_pass(raw: Raw, ours: list[int | None], theirs: list[int | None]) -> None:
    found = judged(raw, ours, theirs)
    assert (found.accuracy["outcome"], found.accuracy["delta_pp"]) == ("inconclusive", None)
    assert found.validation["primary_metric_acceptable"] is False


def test_a_loss_that_is_not_finite_is_rejected(raw: Raw) -> None:
    found = judged(raw, [50, 50, 50, None], [50] * 4, losses=[3.0, 3.0, 3.0, None])
    assert (found.accuracy["outcome"], found.accuracy["final"]) == ("reject", None)
    assert found.outcome == "reject"


def test_too_few_examples_do_not_pass(raw: Raw) -> None:
    subject, baseline = counted(raw, [50] * 4), counted(raw, [50] * 4, side="baseline")
    found = assess(subject, baseline, SMALL, tokens_available=300_000)
    assert found.accuracy is not None
    assert (found.accuracy["examples"]["required"], found.accuracy["acceptable"]) == (3000, False)


@given(pairs=st.lists(st.tuples(st.integers(0, TOKENS), st.integers(0, TOKENS)), min_size=4, max_size=12))
def test_counting_only_adds_to_the_gate_and_ignores_what_stays(raw: Raw, pairs: list[tuple[int, int]]) -> None:
    ours, theirs = [one for one, _ in pairs] * 16, [other for _, other in pairs] * 16
    found, back = judged(raw, ours, theirs), judged(raw, theirs, ours)
    plain = judged(raw, [None] * len(ours), [None] * len(ours))
    assert plain.validation["primary_metric_acceptable"] is True
    assert found.primary_metric == plain.primary_metric
    assert found.validation["primary_metric_acceptable"] is found.accuracy["acceptable"]
    assert found.accuracy["delta_pp"] == pytest.approx(-back.accuracy["delta_pp"])
    assert judged(raw, ours, ours).accuracy["delta_pp"] == 0.0


@pytest.mark.parametrize(("correct", "loss"), [(TOKENS + 1, 3.0), (-1, 3.0), (5, None)])
def test_impossible_counts_are_refused(raw: Raw, correct: int, loss: float | None) -> None:
    with pytest.raises(EvidenceError, match="records: "):
        counted(raw, [correct], losses=[loss])


def test_records_without_counts_stay_as_they_were(raw: Raw) -> None:
    plain = raw([3.0, 3.1], tokens=TOKENS)
    assert WindowRecords.parse(canonical_json(plain), "records").to_json() == plain
    with_counts = counted(raw, [7, 0]).to_json()["windows"]
    assert [window["correct"] for window in with_counts] == [7, 0]


class Successor:
    """A model that holds most likely that each token is followed by the next number."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def eval(self) -> None:
        """As a model has it."""

    def parameters(self) -> Any:
        import torch

        return iter([torch.zeros(1)])

    def __call__(self, input_ids: Any, use_cache: bool) -> Any:
        import torch

        return type("Output", (), {"logits": torch.nn.functional.one_hot(input_ids + 1, self.vocabulary).float()})()


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_right_predictions_are_counted_window_by_window(batch: int) -> None:
    import numpy as np

    rows = np.array([[1, 2, 3, 4], [1, 2, 9, 10], [5, 4, 3, 2]], dtype=np.int32)
    counts: list[int] = []
    sums = score_windows(Successor(20), rows, batch, rows.shape[1] - 1, counts)
    assert counts == [3, 2, 0]
    assert sums == score_windows(Successor(20), rows, batch, rows.shape[1] - 1)
    keys: Any = [(number, "final", "a" * 64) for number in range(3)]
    found = window_losses(keys, [1.0, float("nan"), 2.0], 3, correct=counts)
    assert [window.correct for window in found] == [3, None, 0]

"""What guarding does to the baseline's loss: measured, skipped, missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from evpack.catalog.policy import resolve_policy
from evpack.errors import EvidenceError
from evpack.evaluation.overhead import Overhead, overhead_block
from evpack.evaluation.records import Compute, WindowLoss, WindowRecords

CI, SMALL = resolve_policy("balanced", "ci"), resolve_policy("balanced", "small")


def records(*sums: float | None, **changes: Any) -> WindowRecords:
    windows = tuple(
        WindowLoss(
            id=i,
            arm="preview" if i % 2 else "final",
            tokens_sha256=f"{i:064x}",
            predicted_tokens=100,
            nll_sum=total,
            reason=None if total is not None else "nan",
        )
        for i, total in enumerate(sums)
    )
    fields: dict[str, Any] = {
        "model": "m",
        "side": "baseline",
        "scenario": None,
        "run": 1,
        "seed": 42,
        "windows_digest": "w",
        "checkpoint_digest": "c",
        "compute": Compute(device="cpu", dtype="float32", attention="sdpa", batch=8),
        "versions": {},
        "windows": windows,
    }
    return WindowRecords(**fields | changes)


def test_the_ratio_is_that_of_the_perplexities_over_all_windows() -> None:
    found = Overhead.of(records(300.0, 302.0), records(299.0, 301.0))
    block = overhead_block(found, CI)
    assert block["guarded_ppl"] == pytest.approx(math.exp(3.01)) and block["bare_ppl"] == pytest.approx(math.exp(3.0))
    assert block["overhead_ratio"] == pytest.approx(math.exp(0.01))
    assert block["overhead_percent"] == pytest.approx(100 * math.expm1(0.01))
    assert (block["evaluated"], block["skipped"], block["skip_reason"]) == (True, False, None)
    assert block["passed"] is False, "1.005 % is more than one percent"
    assert overhead_block(Overhead.of(records(300.9), records(300.0)), CI)["passed"] is True
    assert overhead_block(Overhead.of(records(299.0), records(300.0)), CI)["passed"] is True


def test_where_no_profile_asks_it_is_skipped_and_says_why() -> None:
    block = overhead_block(None, SMALL)
    assert (block["evaluated"], block["skipped"], block["passed"]) == (False, True, None)
    assert block["skip_reason"] == "profile small does not ask for it"


def test_what_was_asked_for_and_is_missing_does_not_pass() -> None:
    block = overhead_block(None, CI)
    assert (block["evaluated"], block["passed"], block["overhead_ratio"]) == (True, False, None)


def test_a_ratio_beyond_all_numbers_does_not_pass() -> None:
    block = overhead_block(Overhead(1, 1e9, 1.0), CI)
    assert (block["passed"], block["overhead_ratio"], block["guarded_ppl"]) == (False, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"windows_digest": "other"},
        {"checkpoint_digest": "other"},
        {"run": 2},
        {"model": "n"},
        {"compute": Compute(device="cpu", dtype="float32", attention="sdpa", batch=4)},
        {"windows": records(None).windows},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_two_scorings_that_do_not_belong_together_are_refused(changes: Mapping[str, Any]) -> None:
    with pytest.raises(EvidenceError, match="redo calibrate"):
        Overhead.of(records(300.0), records(300.0, **changes))

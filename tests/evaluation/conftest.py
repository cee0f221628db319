from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from evpack.evaluation.records import WindowRecords
from evpack.files import canonical_json

MakeRecords = Callable[..., WindowRecords]


def records_json(
    losses: Sequence[float | None], *, side: str = "subject", tokens: Sequence[int] | int = 127, **changes: Any
) -> dict[str, Any]:
    """Records with losses per predicted token; the first half of the windows is the preview arm."""
    counts = [tokens] * len(losses) if isinstance(tokens, int) else list(tokens)
    half = len(losses) // 2
    windows = [
        {
            "id": index,
            "arm": "preview" if index < half else "final",
            "tokens_sha256": hashlib.sha256(str(index).encode()).hexdigest(),
            "predicted_tokens": count,
            "nll_sum": None if loss is None else loss * count,
            "reason": "loss is nan" if loss is None else None,
        }
        for index, (loss, count) in enumerate(zip(losses, counts, strict=True))
    ]
    document = {
        "schema": "evpack_window_records_v1",
        "model": "tiny",
        "side": side,
        "scenario": "edit_clean" if side == "subject" else None,
        "run": 1,
        "seed": 42,
        "windows_digest": "a" * 64,
        "checkpoint_digest": ("b" if side == "subject" else "c") * 64,
        "compute": {"device": "cpu", "dtype": "float32", "attention": "eager", "batch": 8},
        "versions": {"torch": "2.13.0"},
        "windows": windows,
    }
    return document | changes


@pytest.fixture(scope="session")
def raw() -> Callable[..., dict[str, Any]]:
    return records_json


@pytest.fixture(scope="session")
def records() -> MakeRecords:
    def make(*args: Any, **kwargs: Any) -> WindowRecords:
        return WindowRecords.parse(canonical_json(records_json(*args, **kwargs)), "records")

    return make

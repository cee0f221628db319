from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from evpack.catalog.policy import Policy, resolve_policy
from evpack.evaluation.records import Compute, WindowLoss, WindowRecords
from evpack.files import sha256_bytes
from evpack.tuning.acceptance import Shape

Pool = tuple[list[WindowRecords], list[WindowRecords]]
MakePool = Callable[..., Pool]

TOKENS = 127


def records(side: str, losses: Sequence[float | None]) -> WindowRecords:
    """Losses per token of windows whose arms alternate."""
    windows = tuple(
        WindowLoss(
            id=index,
            arm="preview" if index % 2 == 0 else "final",
            tokens_sha256=sha256_bytes(b"window %d" % index),
            predicted_tokens=TOKENS,
            nll_sum=None if loss is None else loss * TOKENS,
            reason="non_finite_loss:nan" if loss is None else None,
        )
        for index, loss in enumerate(losses)
    )
    return WindowRecords(
        model="tiny",
        side="subject" if side == "subject" else "baseline",
        scenario="tune" if side == "subject" else None,
        run=1,
        seed=42,
        windows_digest="w",
        checkpoint_digest=side,
        compute=Compute(device="cpu", dtype="float32", attention="sdpa", batch=8),
        versions={},
        windows=windows,
    )


@pytest.fixture(scope="session")
def pool() -> MakePool:
    """Subject and baseline whose differences per token have a mean and a spread; a broken window on demand."""

    def make(mean: float, spread: float = 0.01, *, count: int = 64, broken: bool = False) -> Pool:
        draw = random.Random(7)  # noqa: S311 - numbers for a test
        base = [3 + draw.random() for _ in range(count)]
        ours: list[float | None] = [loss + mean + spread * draw.choice((-1, 1)) for loss in base]
        if broken:
            ours[5] = None
        return [records("subject", ours)], [records("baseline", base)]

    return make


@pytest.fixture(scope="session")
def policy() -> Policy:
    return resolve_policy("balanced", "small")


@pytest.fixture(scope="session")
def shape() -> Shape:
    return Shape(runs=3, preview=16, final=16, tokens_available=100_000)

"""How hard windows are to predict, without any model of the campaign, and arms that are equally hard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ORDER = 4
"""Bytes of an n-gram: three of context, one that is predicted."""
ALPHA = 1.0
"""Added to every count (Laplace)."""
SYMBOLS = 257
"""Bytes, and the pad that stands before a window's first ones."""
PAD = 256

MAX_SWAPS = 100
CLOSE = 1e-4
"""Difference of the arms' mean difficulties that is good enough, nats per byte."""
WORTHWHILE = 1e-6
"""Least improvement for which two windows change places."""

Difficulties = npt.NDArray[np.float64]


def difficulties(texts: Sequence[str]) -> Difficulties:
    """Mean negative log-probability of each text's bytes, nats per byte, by a 4-gram model fitted on all of them.

    -ln((c(context, byte) + 1) / (c(context) + 257)), averaged over a text; 0 for an empty one. Rounded to six decimals,
    so that the last bits of a machine's logarithm decide nothing.

    Returns:
        float64 array [len(texts)].
    """
    grams = [_grams(text.encode("utf-8", "surrogatepass")) for text in texts]
    lengths = np.array([len(part) for part in grams], dtype=np.int64)
    if not lengths.sum():
        return np.zeros(len(texts))
    codes = np.concatenate(grams)
    both = np.log(_counts(codes) + ALPHA) - np.log(_counts(codes // SYMBOLS) + ALPHA * SYMBOLS)
    owner = np.repeat(np.arange(len(texts)), lengths)
    sums = np.bincount(owner, weights=-both, minlength=len(texts))
    return np.round(sums / np.maximum(lengths, 1), 6)


def _grams(data: bytes) -> npt.NDArray[np.int64]:
    """Every n-gram of a text as one number, the predicted byte in its last digit (base 257)."""
    padded = np.concatenate([np.full(ORDER - 1, PAD), np.frombuffer(data, dtype=np.uint8)]).astype(np.int64)
    code = np.zeros(len(data), dtype=np.int64)
    for shift in range(ORDER):
        code = code * SYMBOLS + padded[shift : shift + len(data)]
    return code


def _counts(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each element's value occurs."""
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse], dtype=np.int64)


def share_out(ids: Sequence[int], values: Difficulties, preview: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split windows into two arms of equal mean difficulty.

    In order of difficulty they go in pairs, the easier one to either arm in turn; then windows change places as
    long as that brings the means nearer.

    Args:
        ids: windows of a run.
        values: difficulty by id.
        preview: windows of the first arm.

    Returns:
        (preview, final), ascending ids.
    """
    order = sorted(ids, key=lambda window: (values[window], window))
    arms: tuple[list[int], list[int]] = ([], [])
    room = (preview, len(order) - preview)
    for place, window in enumerate(order):
        wanted = (place // 2 + place) % 2
        arms[wanted if len(arms[wanted]) < room[wanted] else 1 - wanted].append(window)
    if preview and room[1]:
        _level(arms, values)
    return tuple(sorted(arms[0])), tuple(sorted(arms[1]))


def gap(arms: tuple[Sequence[int], Sequence[int]], values: Difficulties) -> float:
    """Mean difficulty of the first arm less that of the second."""
    return float(values[list(arms[0])].mean() - values[list(arms[1])].mean())


def _level(arms: tuple[list[int], list[int]], values: Difficulties) -> None:
    """Swap the two windows that bring the means nearest, at most `MAX_SWAPS` times."""
    weight = 1 / len(arms[0]) + 1 / len(arms[1])
    for _ in range(MAX_SWAPS):
        now = gap(arms, values)
        if abs(now) <= CLOSE:
            return
        after = np.abs(now - weight * (values[arms[0]][:, None] - values[arms[1]][None, :]))
        best = int(after.argmin())
        if abs(now) - after.flat[best] < WORTHWHILE:
            return
        one, other = divmod(best, len(arms[1]))
        arms[0][one], arms[1][other] = arms[1][other], arms[0][one]

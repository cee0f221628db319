from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.data.difficulty import difficulties, gap, share_out

WINDOWS = st.lists(st.floats(0, 8, allow_subnormal=False), min_size=2, max_size=30)


def by_hand(texts: list[str]) -> list[float]:
    """The formula of the specification, counted in dictionaries."""
    padded = [[256] * 3 + list(text.encode()) for text in texts]
    grams = [[tuple(row[i : i + 4]) for i in range(len(row) - 3)] for row in padded]
    pairs = Counter(gram for row in grams for gram in row)
    contexts = Counter(gram[:3] for row in grams for gram in row)
    return [
        sum(-math.log((pairs[gram] + 1) / (contexts[gram[:3]] + 257)) for gram in row) / max(len(row), 1)
        for row in grams
    ]


@given(st.lists(st.text("abé\n", max_size=12), min_size=1, max_size=8))
def test_difficulty_is_the_smoothed_four_gram_loss(texts: list[str]) -> None:
    assert difficulties(texts).tolist() == pytest.approx(by_hand(texts), abs=1e-6)


def test_known_answers() -> None:
    # contexts pad-pad-pad, pad-pad-a and pad-a-a twice each with one successor; aaa never stands before a byte
    assert difficulties(["aaa", "aaa", ""]).tolist() == [round(-math.log(3 / 259), 6)] * 2 + [0.0]
    assert difficulties([]).tolist() == []
    rare = difficulties(["the cat sat", "the cat sat", "the cat sat", "zq!7 Xv%k#w"])
    assert rare[3] > rare[0] == rare[1]


@given(WINDOWS, st.data())
def test_arms_hold_every_window_once(values: list[float], data: st.DataObject) -> None:
    preview = data.draw(st.integers(1, len(values) - 1))
    arms = share_out(range(len(values)), np.array(values), preview)
    assert sorted(arms[0] + arms[1]) == list(range(len(values)))
    assert len(arms[0]) == preview
    assert all(list(arm) == sorted(arm) for arm in arms)
    assert share_out(list(range(len(values)))[::-1], np.array(values), preview) == arms


@given(WINDOWS)
def test_no_swap_of_two_windows_would_bring_the_arms_nearer(values: list[float]) -> None:
    hardness = np.array(values)
    arms = share_out(range(len(values)), hardness, len(values) // 2)
    now = abs(gap(arms, hardness))
    if now <= 1e-4:
        return
    for one in arms[0]:
        for other in arms[1]:
            swapped = ([*arms[0], other], [*arms[1], one])
            swapped[0].remove(one)
            swapped[1].remove(other)
            assert abs(gap(swapped, hardness)) >= now - 2e-6


def test_ordinary_windows_give_arms_of_one_difficulty() -> None:
    draw = np.random.default_rng(3)
    for count, preview in ((64, 32), (48, 16), (360, 180)):
        hardness = draw.normal(3.0, 0.4, 1000)
        ids = sorted(draw.choice(1000, count, replace=False).tolist())
        assert abs(gap(share_out(ids, hardness, preview), hardness)) <= 1e-4

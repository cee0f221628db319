from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.data.windows import (
    WindowDemand,
    WindowSet,
    chunk,
    make_windows,
    schedule_runs,
    window_digest,
)
from evpack.errors import BadInput, DataError, IntegrityError

DEMANDS = st.builds(
    WindowDemand,
    runs=st.integers(1, 6),
    preview=st.integers(1, 9),
    final=st.integers(1, 9),
    seq_len=st.just(8),
    stride=st.just(8),
)


def test_chunks_are_full_and_the_rest_is_dropped() -> None:
    windows = chunk([[0, 1, 2], [3, 4, 5, 6], [7, 8]], seq_len=4, stride=4)
    assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows.dtype == np.int32


def test_windows_advance_by_the_stride() -> None:
    assert chunk([range(9)], seq_len=4, stride=2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    windows = make_windows([range(60)], WindowDemand(2, 2, 3, 8, 2), provider="text", tokenizer_digest="t")
    assert (windows.stride, windows.predicted, windows.text_tokens) == (2, 2, 54)
    scored = [int(token) for row in windows.tokens for token in row[-windows.predicted :]]
    assert scored == list(range(6, 60))


@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 3), (2, 1)])
def test_a_text_of_as_many_tokens_as_demanded_has_just_enough_windows(seq_len: int, stride: int) -> None:
    demand = WindowDemand(2, 2, 3, seq_len, stride)
    for tokens in (demand.tokens, demand.tokens - 1):
        found = len(chunk([range(tokens)], seq_len, stride))
        assert found == demand.windows_in(tokens) == demand.windows - (tokens < demand.tokens)


def test_text_below_one_window_gives_none() -> None:
    assert chunk([], 4, 4).shape == (0, 4)
    assert chunk([[1, 2]], 4, 4).shape == (0, 4)


@given(DEMANDS, st.integers(0, 200))
def test_runs_and_arms_are_disjoint_and_complete(demand: WindowDemand, spare: int) -> None:
    runs = schedule_runs(demand.windows + spare, demand)
    used = [i for run in runs for i, _ in run.in_order()]
    assert len(set(used)) == len(used) == demand.windows
    assert min(used) >= 0 and max(used) < demand.windows + spare
    for run in runs:
        assert (len(run.preview), len(run.final)) == (demand.preview, demand.final)
    assert [run.seed for run in runs] == [41 + run.run for run in runs]


@given(DEMANDS, st.integers(0, 200))
def test_a_run_never_holds_neighbours_where_there_is_room(demand: WindowDemand, spare: int) -> None:
    available = demand.windows + spare
    if available < 2 * demand.per_run:
        return
    for run in schedule_runs(available, demand):
        ids = sorted(run.preview + run.final)
        assert all(b - a > 1 for a, b in pairwise(ids))


@given(DEMANDS)
def test_a_run_is_spread_over_the_whole_text(demand: WindowDemand) -> None:
    available = 40 * demand.windows
    for run in schedule_runs(available, demand):
        strata = [i * demand.per_run // available for i in sorted(run.preview + run.final)]
        assert len(strata) == demand.per_run
        assert max(strata) - min(strata) >= demand.per_run - 2


def test_the_schedule_is_reproducible_and_follows_the_seed() -> None:
    demand = WindowDemand(3, 16, 16, 128, 128)
    assert schedule_runs(500, demand) == schedule_runs(500, demand)
    assert schedule_runs(500, demand) != schedule_runs(500, demand, seed=7)


def test_arms_of_a_run_are_equally_hard_and_which_windows_a_run_has_does_not_depend_on_it() -> None:
    demand = WindowDemand(3, 16, 16, 128, 128)
    hardness = np.random.default_rng(5).gamma(4.0, 0.5, 500)
    runs = schedule_runs(500, demand, hardness=hardness)
    for run, plain in zip(runs, schedule_runs(500, demand), strict=True):
        assert sorted(run.preview + run.final) == sorted(plain.preview + plain.final)
        means = [hardness[list(arm)].mean() for arm in (run.preview, run.final)]
        assert run.difficulty == pytest.approx(means, abs=1e-6)
        assert abs(means[0] - means[1]) <= 2e-3
        assert plain.difficulty is None


def test_without_difficulties_arms_alternate_along_the_text() -> None:
    (run,) = schedule_runs(100, WindowDemand(1, 5, 5, 8, 8))
    arms = [arm for _, arm in sorted(run.in_order())]
    assert all(a != b for a, b in pairwise(arms))


def test_difficulty_of_the_arms_is_recorded(tmp_path: Path) -> None:
    words = ["aaaa", "abab", "qxzj"]

    def decode(tokens: npt.NDArray[np.int32]) -> list[str]:
        return [words[int(row[0]) % 3] * 5 for row in tokens]

    made = make_windows([range(60)], WindowDemand(1, 3, 3, 4, 4), provider="text", tokenizer_digest="t", decode=decode)
    made.save(tmp_path)
    (entry,) = WindowSet.load(tmp_path).document()["runs"]
    assert entry["difficulty"]["preview"] == pytest.approx(entry["difficulty"]["final"], abs=0.5)
    assert entry["difficulty"]["preview"] > 0


def test_a_demand_of_no_windows_is_refused() -> None:
    with pytest.raises(BadInput, match="E302"):
        WindowDemand(1, 0, 4, 8, 8)


def test_too_short_says_there_needed_and_missing() -> None:
    with pytest.raises(
        DataError, match=r"E304: .*95 windows of 128 tokens .*96 needed \(3 runs x \(16 \+ 16\)\), 1 missing"
    ):
        schedule_runs(95, WindowDemand(3, 16, 16, 128, 128))


@pytest.fixture
def windows() -> WindowSet:
    demand = WindowDemand(2, 2, 3, 4, 4)
    return make_windows([range(60)], demand, provider="text", tokenizer_digest="t")


def test_saved_windows_read_back_equal(windows: WindowSet, tmp_path: Path) -> None:
    windows.save(tmp_path)
    again = WindowSet.load(tmp_path)
    assert again.document() == windows.document() and again.stride == 4
    run = again.run(2)
    assert again.run_tokens(run).tolist() == [list(range(4 * i, 4 * i + 4)) for i, _ in run.in_order()]
    assert again.run_digest(run) == windows.run_digest(windows.run(2)) != windows.run_digest(windows.run(1))


def test_unknown_run_names_the_scheduled_ones(windows: WindowSet) -> None:
    with pytest.raises(DataError, match=r"run 3 .*\[1, 2\]"):
        windows.run(3)


def test_a_changed_token_is_noticed(windows: WindowSet, tmp_path: Path) -> None:
    windows.save(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    changed = windows.tokens.copy()
    changed[3, 1] += 1
    WindowSet(changed, windows.runs, "text", "t", 4).save(other)
    shutil.copy(tmp_path / "schedule.json", other / "schedule.json")
    with pytest.raises(IntegrityError, match=r"schedule\.json"):
        WindowSet.load(other)


@pytest.mark.parametrize("name", ["schedule.json", "tokens.safetensors"])
def test_missing_or_damaged_files_are_named(windows: WindowSet, tmp_path: Path, name: str) -> None:
    windows.save(tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(DataError, match=str(tmp_path)):
        WindowSet.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=str(tmp_path)):
        WindowSet.load(tmp_path)


def test_window_digest_is_over_little_endian_ids() -> None:
    import hashlib

    ids = np.array([1, 256], dtype=np.int32)
    assert window_digest(ids) == hashlib.sha256(b"\x01\0\0\0\0\x01\0\0").hexdigest()


def test_repeated_windows_count_once() -> None:
    demand = WindowDemand(1, 1, 1, 4, 4)
    windows = make_windows([[1, 2, 3, 4] * 3, range(8)], demand, provider="text", tokenizer_digest="t")
    assert windows.tokens.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match="1 windows"):
        make_windows([[1, 2, 3, 4] * 9], demand, provider="text", tokenizer_digest="t")


def test_of_a_long_text_windows_are_left_out_evenly_and_counted(tmp_path: Path) -> None:
    demand = WindowDemand(2, 2, 3, 4, 4)
    thinned = make_windows([range(400)], demand, provider="text", tokenizer_digest="t", most=40)
    rows = (thinned.tokens[:, 0] // 4).tolist()
    assert len(rows) == 40 and (rows[0], rows[-1]) == (0, 97)
    assert {b - a for a, b in pairwise(rows)} == {2, 3}
    assert thinned.text_tokens == 160
    thinned.save(tmp_path)
    again = WindowSet.load(tmp_path)
    assert again.document() == thinned.document() and again.document()["n_left_out"] == again.left_out == 60
    whole = make_windows([range(160)], demand, provider="text", tokenizer_digest="t", most=40)
    assert whole.runs == thinned.runs and "n_left_out" not in whole.document()

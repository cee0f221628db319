"""Windows of token ids: chunking, the schedule of all runs, and their files on disk.

``windows/tokens.safetensors`` holds one int32 tensor ``tokens`` of shape [n, seq_len]: the full windows of the text,
in text order; a window's id is its row. ``windows/schedule.json`` says which rows each run uses. A policy asks that a
run predict a share of the text: of a text that is too long for that, windows are left out evenly before any is drawn,
and ``n_left_out`` says how many.

Windows advance by ``stride`` tokens. With a stride below seq_len a window begins with tokens of the one before: they
are context, and only its last ``stride`` tokens are predicted, so that no token of the text is scored twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evpack.catalog.floors import Arm, predicted_tokens
from evpack.data import difficulty
from evpack.errors import BadInput, DataError, EvidenceError, EvpackError, IntegrityError
from evpack.files import digest_json, read_json, sha256_bytes, write_json
from evpack.settings import Settings

SCHEDULE_SCHEMA = "evpack_windows_v1"
BASE_SEED = 42
"""Seed of the one permutation that all runs are slices of (the reference's dataset seed)."""
FIRST_RUN_SEED = 41
"""Run k carries the label seed 41 + k, as in the reference."""

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class WindowDemand:
    """How many full windows a campaign needs of each model's text."""

    runs: int
    preview: int
    final: int
    seq_len: int
    stride: int
    """Tokens from one window's beginning to the next one's, at most seq_len."""

    def __post_init__(self) -> None:
        if min(self.runs, self.preview, self.final, self.seq_len, self.stride) < 1:
            raise BadInput(f"E302: a demand of no windows: {self}", "set every count to 1 or more")

    @property
    def per_run(self) -> int:
        """Windows of one run, both arms."""
        return self.preview + self.final

    @property
    def windows(self) -> int:
        """Windows of all runs."""
        return self.runs * self.per_run

    @property
    def predicted(self) -> int:
        """Tokens that a window predicts."""
        return predicted_tokens(self.seq_len, self.stride)

    @property
    def tokens(self) -> int:
        """Tokens of a text that has as many windows, none of them twice."""
        return self.seq_len + (self.windows - 1) * self.stride

    def windows_in(self, tokens: int) -> int:
        """Windows of a text of so many tokens."""
        return max(0, (tokens - self.seq_len) // self.stride + 1)

    @classmethod
    def from_settings(cls, settings: Settings) -> WindowDemand:
        """The demand of a campaign."""
        windows = (settings.preview_windows, settings.final_windows)
        return cls(settings.scheduled_runs, *windows, settings.seq_len, settings.advance)


def too_short(have: int, demand: WindowDemand, basis: str, kind: type[EvpackError] = DataError) -> EvpackError:
    """The error for a text with too few windows: how many are there, needed and missing.

    E303 for the operator (nothing was tokenised for good yet), else E304.
    """
    code = "E303" if issubclass(kind, BadInput) else "E304"
    return kind(
        f"{code}: text too short: {have} windows of {demand.seq_len} tokens ({basis}), {demand.windows} needed "
        f"({demand.runs} runs x ({demand.preview} + {demand.final})), {demand.windows - have} missing",
        "give more text, or lower the number of runs, seq_len or, down to what tier and profile ask for, "
        "preview_windows and final_windows",
    )


def chunk(documents: Iterable[Sequence[int]], seq_len: int, stride: int) -> Tokens:
    """Concatenate token ids and cut them into full windows; what is left at the end is dropped.

    Returns:
        int32 array [n, seq_len], window i starting at token i * stride.
    """
    parts = [np.asarray(document, dtype=np.int32) for document in documents]
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    if len(stream) < seq_len:
        return np.empty((0, seq_len), dtype=np.int32)
    return np.lib.stride_tricks.sliding_window_view(stream, seq_len)[::stride]


def _first_of_each(tokens: Tokens) -> Tokens:
    """The windows without exact repetitions, in text order: a window that stands twice is no second observation."""
    first: dict[bytes, int] = {}
    for row, window in enumerate(tokens):
        first.setdefault(window.tobytes(), row)
    return tokens[list(first.values())]


@dataclass(frozen=True)
class RunWindows:
    """The windows of one run: ascending ids per arm, arms disjoint."""

    run: int
    seed: int
    preview: tuple[int, ...]
    final: tuple[int, ...]
    difficulty: tuple[float, float] | None = None
    """Mean difficulty of the arms, nats per byte; None where it is not known."""

    def in_order(self) -> list[tuple[int, Arm]]:
        """(id, arm) in the order in which records list them: preview, then final."""
        return [(i, "preview") for i in self.preview] + [(i, "final") for i in self.final]


def schedule_runs(
    available: int, demand: WindowDemand, seed: int = BASE_SEED, hardness: difficulty.Difficulties | None = None
) -> tuple[RunWindows, ...]:
    """Give each run its own windows, spread over the whole text.

    The text is cut into as many strata as a run has windows; a seeded draw takes one window per stratum and run, so
    that runs are disjoint slices of one permutation and the windows of a run lie apart (neighbouring windows
    are correlated: lag-1 autocorrelation 0.05-0.14). Where a draw would give a run two neighbouring windows across a
    stratum's edge, it changes places with another one. The arms of a run are equally hard.

    Args:
        hardness: difficulty of each window (`difficulty.difficulties`); without it, arms alternate along the text.

    Raises:
        DataError: when there are fewer windows than needed.
    """
    if available < demand.windows:
        raise too_short(available, demand, f"full windows, {demand.stride} tokens apart")
    draw = random.Random(seed)  # noqa: S311 - a sample that can be drawn again, not a secret
    picks: list[list[int]] = [[] for _ in range(demand.runs)]
    for stratum in range(demand.per_run):
        low = stratum * available // demand.per_run
        high = (stratum + 1) * available // demand.per_run
        chosen = draw.sample(range(low, high), high - low)
        _part_neighbours(picks, chosen)
        for run, window in zip(picks, chosen, strict=False):
            run.append(window)
    return tuple(_split_arms(k, ids, demand, hardness) for k, ids in enumerate(picks, start=1))


def _part_neighbours(picks: Sequence[list[int]], chosen: list[int]) -> None:
    """Swap a window away from the run that took its neighbour (only one run can have taken it)."""
    for k, run in enumerate(picks):
        if run and chosen[k] == run[-1] + 1 and len(chosen) > 1:
            other = (k + 1) % len(chosen)
            chosen[k], chosen[other] = chosen[other], chosen[k]
            return


def _split_arms(
    k: int, ids: Sequence[int], demand: WindowDemand, hardness: difficulty.Difficulties | None
) -> RunWindows:
    arms = _alternate(ids, demand) if hardness is None else difficulty.share_out(ids, hardness, demand.preview)
    if (len(arms[0]), len(arms[1])) != (demand.preview, demand.final):
        raise DataError(f"E305: run {k} does not give each arm its windows: {len(arms[0])} + {len(arms[1])}")
    means = None if hardness is None else (_mean(hardness, arms[0]), _mean(hardness, arms[1]))
    return RunWindows(k, FIRST_RUN_SEED + k, *arms, means)


def _mean(values: difficulty.Difficulties, ids: Sequence[int]) -> float:
    return round(float(values[list(ids)].mean()), 6)


def _alternate(ids: Sequence[int], demand: WindowDemand) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Share the ids, in text order, evenly between the arms (Bresenham's rule for unequal counts)."""
    arms: dict[bool, list[int]] = {True: [], False: []}
    for place, window in enumerate(ids):
        before, after = place * demand.preview // len(ids), (place + 1) * demand.preview // len(ids)
        arms[after > before].append(window)
    return tuple(arms[True]), tuple(arms[False])


def window_digest(tokens: Tokens) -> str:
    """Hex SHA-256 of one window's ids as int32 little-endian."""
    return sha256_bytes(tokens.astype("<i4", copy=False).tobytes())


@dataclass(frozen=True)
class WindowSet:
    """All windows of a model and the schedule of its runs."""

    tokens: Tokens
    """int32 [n, seq_len]."""
    runs: tuple[RunWindows, ...]
    provider: str
    tokenizer_digest: str
    stride: int
    """Tokens from one window's beginning to the next one's."""
    seed: int = BASE_SEED
    left_out: int = 0
    """Windows of the text that are not among them, spread evenly over it."""

    @property
    def seq_len(self) -> int:
        """Tokens per window."""
        return int(self.tokens.shape[1])

    @property
    def predicted(self) -> int:
        """Tokens that are predicted in a window, its last ones."""
        return predicted_tokens(self.seq_len, self.stride)

    @property
    def text_tokens(self) -> int:
        """Tokens that all windows cover, but for the context of the first."""
        return len(self.tokens) * self.stride

    def run(self, number: int) -> RunWindows:
        """The run with this number.

        Raises:
            DataError: when it was never scheduled.
        """
        for run in self.runs:
            if run.run == number:
                return run
        raise DataError(f"run {number} has no windows; scheduled are {[r.run for r in self.runs]}", "plan again")

    def run_tokens(self, run: RunWindows) -> Tokens:
        """int32 [preview + final, seq_len] in the order of `RunWindows.in_order`."""
        return self.tokens[[i for i, _ in run.in_order()]]

    def run_digest(self, run: RunWindows) -> str:
        """Digest of what a run is scored on: ids, arms, token ids. Equal digests mean pairable records."""
        rows = [[i, arm, window_digest(self.tokens[i])] for i, arm in run.in_order()]
        return digest_json({"run": run.run, "seed": run.seed, "seq_len": self.seq_len, "windows": rows})

    def document(self) -> dict[str, Any]:
        """The content of schedule.json."""
        body: dict[str, Any] = {
            "schema": SCHEDULE_SCHEMA,
            "provider": self.provider,
            "tokenizer_digest": self.tokenizer_digest,
            "seq_len": self.seq_len,
            "stride": self.stride,
            "seed": self.seed,
            "n_available": len(self.tokens),
            **({"n_left_out": self.left_out} if self.left_out else {}),
            "tokens_sha256": window_digest(self.tokens),
            "runs": [
                {"run": r.run, "seed": r.seed, "preview": list(r.preview), "final": list(r.final)}
                | ({"difficulty": dict(zip(("preview", "final"), r.difficulty, strict=True))} if r.difficulty else {})
                for r in self.runs
            ],
        }
        return body | {"digest": digest_json(body)}

    def save(self, directory: Path) -> None:
        """Write both files into an existing directory that is not yet published."""
        from safetensors.numpy import save_file

        save_file({"tokens": self.tokens}, directory / "tokens.safetensors")
        write_json(directory / "schedule.json", self.document())

    @classmethod
    def load(cls, directory: Path) -> WindowSet:
        """Read what `save` wrote, checking the digests.

        Raises:
            DataError: when a file is missing or malformed.
            IntegrityError: when token ids or schedule are not what their digests promise.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        schedule = directory / "schedule.json"
        try:
            document: Mapping[str, Any] = read_json(schedule)
            tokens = load_file(directory / "tokens.safetensors")["tokens"]
            runs = tuple(_run_of(entry) for entry in document["runs"])
            about = (document["provider"], document["tokenizer_digest"], document["stride"], document["seed"])
            windows = cls(tokens, runs, *about, document.get("n_left_out", 0))
        except (OSError, SafetensorError, EvidenceError, KeyError, TypeError) as error:
            raise DataError(f"windows in {directory} cannot be read: {error}", "redo setup_baseline") from error
        if tokens.dtype != np.int32 or tokens.ndim != 2 or windows.document() != document:
            raise IntegrityError(
                f"windows in {directory} differ from the digests in schedule.json", "redo setup_baseline"
            )
        return windows


def _run_of(entry: Mapping[str, Any]) -> RunWindows:
    means = entry.get("difficulty")
    pair = (means["preview"], means["final"]) if means else None
    return RunWindows(entry["run"], entry["seed"], tuple(entry["preview"]), tuple(entry["final"]), pair)


def make_windows(
    documents: Iterable[Sequence[int]],
    demand: WindowDemand,
    *,
    provider: str,
    tokenizer_digest: str,
    decode: Callable[[Tokens], Sequence[str]] | None = None,
    most: int | None = None,
) -> WindowSet:
    """Chunk token ids, drop repeated windows and schedule the runs.

    Args:
        most: windows that are kept, spread evenly over the text; None for all.
        decode: the text of each window, by which its difficulty is judged; without it, arms alternate along the text.

    Raises:
        DataError: when the text is too short.
    """
    found = _first_of_each(chunk(documents, demand.seq_len, demand.stride))
    kept = min(len(found), len(found) if most is None else most)
    tokens = found[np.arange(kept) * len(found) // max(kept, 1)]
    if len(tokens) < demand.windows:
        left_out = f", {len(found) - kept} more left out to leave a run its share of the text" * (kept < len(found))
        raise too_short(len(tokens), demand, f"full windows, {demand.stride} tokens apart{left_out}")
    hardness = difficulty.difficulties(decode(tokens)) if decode else None
    runs = schedule_runs(len(tokens), demand, hardness=hardness)
    return WindowSet(tokens, runs, provider, tokenizer_digest, demand.stride, left_out=len(found) - kept)

"""Classes of failures: the exit code first, this attempt's own output second; pauses as the reference computes them."""

from __future__ import annotations

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import StepExit
from evpack.runtime.failures import JITTER, RETRIED, STEP_CODES, RetryLimits, class_of, crashed, memory_kills
from evpack.settings import Settings

DEFAULTS = RetryLimits.of(Settings())


@pytest.mark.parametrize("code", list(StepExit))
def test_a_code_of_a_step_is_believed_whatever_was_printed(code: StepExit) -> None:
    assert class_of(code, ["torch.OutOfMemoryError", "TypeError: x"])[0] is code


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", StepExit.OUT_OF_MEMORY),
        ("RuntimeError: CUDA error: out of memory", StepExit.OUT_OF_MEMORY),
        ("MemoryError", StepExit.OUT_OF_HOST_MEMORY),
        ("Killed", StepExit.OUT_OF_HOST_MEMORY),
        ("OSError: [Errno 28] No space left on device: '/x'", StepExit.DISK),
        ("ModuleNotFoundError: No module named 'x'", StepExit.PERMANENT),
        ("TypeError: f() takes no arguments", StepExit.PERMANENT),
        ("ValueError: 'fp9' is not a valid dtype", StepExit.PERMANENT),
        ("ValueError: Architecture not supported: X", StepExit.PERMANENT),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", StepExit(11)),
        ("requests.exceptions.ConnectionError: reset", StepExit.TRANSIENT),
        ("HTTP Error 503", StepExit.TRANSIENT),
        ("Timeout (6:01:00)!", StepExit.TRANSIENT),
        ("ImportError: seen and mended\nTimeout (0:00:02)!", StepExit.TRANSIENT),
        ("something nobody has seen", StepExit.TRANSIENT),
        # words that only look like a class
        ("loaded ROOMS_2024, window 503", StepExit.TRANSIENT),
        ("Killed 3 idle connections", StepExit.TRANSIENT),
        ("the docs speak of TypeError and ImportError", StepExit.TRANSIENT),
    ],
)
def test_an_unknown_code_is_classified_by_what_this_attempt_printed(line: str, expected: StepExit) -> None:
    for code in (1, -signal.SIGABRT, 128 + signal.SIGSEGV):
        class_, what = class_of(code, ["a line before", line, "a line after"])
        assert class_ is expected
        assert str(code) in what or "SIG" in what


def test_a_kill_is_memory_only_when_the_kernel_killed_for_memory() -> None:
    for code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        assert class_of(code)[0] is StepExit.TRANSIENT
        assert class_of(code, memory_killed=True)[0] is StepExit.OUT_OF_HOST_MEMORY
    assert class_of(-signal.SIGTERM, memory_killed=True)[0] is StepExit.TRANSIENT
    assert class_of(-signal.SIGKILL)[1] == "ended by SIGKILL"
    assert memory_kills() >= 0


def test_what_a_process_did_itself_is_a_crash_and_what_was_done_to_it_is_none() -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        assert crashed(-number) and crashed(128 + number)
    for code in (-signal.SIGKILL, 128 + signal.SIGTERM, 1, *StepExit):
        assert not crashed(code)
    assert crashed(1, ["a line", "Timeout (6:01:00)!", "Thread 0x1"])
    assert not crashed(StepExit.TRANSIENT, ["Timeout (6:01:00)!"])


@given(st.integers(-70, 300), st.lists(st.text(max_size=40), max_size=5))
def test_every_code_has_a_class(code: int, lines: list[str]) -> None:
    class_, what = class_of(code, lines)
    assert what and (code not in STEP_CODES or class_ == code)


def test_pauses_double_from_30_seconds_up_to_300() -> None:
    middle = [DEFAULTS.pause_s(used, lambda: 0.5) for used in range(6)]
    assert middle == pytest.approx([30, 60, 120, 240, 300, 300])
    assert DEFAULTS.retries == 3
    assert DEFAULTS.pause_s(0, lambda: 0.0) == pytest.approx(24)
    assert DEFAULTS.pause_s(3, lambda: 0.999999) == pytest.approx(288, rel=1e-3)
    assert DEFAULTS.pause_s(10_000, lambda: 0.0) == 300


@given(st.integers(0, 200), st.floats(0, 1, exclude_max=True), st.floats(0, 1e4), st.floats(0, 1e4))
def test_pauses_stay_within_jitter_and_cap(used: int, dice: float, base: float, cap: float) -> None:
    pause = RetryLimits(3, base, cap).pause_s(used, lambda: dice)
    exact = base * 2.0 ** min(used, 64)
    assert 0 <= pause <= cap
    assert pause == cap or exact * (1 - JITTER) * 0.999999 <= pause <= exact * (1 + JITTER) * 1.000001


def test_what_is_retried() -> None:
    assert {StepExit.TRANSIENT, StepExit.OUT_OF_MEMORY, StepExit.OUT_OF_HOST_MEMORY} == RETRIED
    assert len(STEP_CODES) == len(list(itertools.chain(StepExit)))

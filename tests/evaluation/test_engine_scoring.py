from __future__ import annotations

import math
import os
import random
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evpack.catalog.floors import predicted_tokens
from evpack.data.windows import chunk
from evpack.errors import OutOfMemory, StepExit, Transient
from evpack.evaluation.scoring import (
    Placement,
    contract_of,
    memory_errors,
    prepare_process,
    score_windows,
    window_losses,
)

if TYPE_CHECKING:
    import torch


def tokens(rows: int, columns: int, vocab: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(1).integers(0, vocab, (rows, columns), dtype=np.int32)


class Table:
    """A language model whose next-token logits depend on the current token alone."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits
        self.batches: list[int] = []
        self.config = SimpleNamespace(_attn_implementation="eager")

    def eval(self) -> None: ...

    def parameters(self) -> Any:
        return iter([self.logits])

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.batches.append(len(input_ids))
        return SimpleNamespace(logits=self.logits[input_ids])


def test_uniform_logits_cost_log_vocabulary_per_predicted_token() -> None:
    import torch

    sums = score_windows(Table(torch.zeros(10, 10)), tokens(3, 9, 10), batch=2, predicted=8)
    assert sums == pytest.approx([8 * math.log(10)] * 3, rel=1e-6)


def test_losses_do_not_depend_on_how_windows_share_batches() -> None:
    import torch

    table = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    rows = tokens(7, 16, 10)
    expected = score_windows(Table(table), rows, batch=7, predicted=15)
    for batch in (1, 2, 3, 100):
        model = Table(table)
        assert score_windows(model, rows, batch, 15) == expected
        assert sum(model.batches) == 7 and max(model.batches) <= batch
    log_p = torch.log_softmax(table.double(), dim=-1).numpy()
    by_hand = [-sum(log_p[a, b] for a, b in pairwise(row)) for row in rows]
    assert expected == pytest.approx(by_hand, rel=1e-5)


def test_with_a_stride_every_token_of_the_text_is_scored_once_and_the_rest_is_context() -> None:
    import torch

    table = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    text = tokens(1, 40, 10)[0]
    rows = chunk([text.tolist()], seq_len=16, stride=4).copy()
    counts: list[int] = []
    sums = score_windows(Table(table), rows, 3, predicted_tokens(16, 4), counts)
    log_p = torch.log_softmax(table.double(), dim=-1).numpy()
    losses = [-log_p[a, b] for a, b in pairwise(text)]  # of tokens 1 to 39
    assert sums == pytest.approx([sum(losses[start : start + 4]) for start in range(11, 39, 4)], rel=1e-5)
    right = [int(log_p[a].argmax() == b) for a, b in pairwise(text)]
    assert counts == [sum(right[start : start + 4]) for start in range(11, 39, 4)]


def test_a_window_that_is_not_finite_leaves_the_others_alone() -> None:
    import torch

    table = torch.zeros(4, 4)
    table[2] = math.nan
    table[3, 0] = -math.inf
    rows = np.array([[0, 1, 0], [0, 2, 0], [3, 0, 1], [0, 0, 2]], dtype=np.int32)
    sums = score_windows(Table(table), rows, batch=4, predicted=2)
    losses = window_losses([(i, "preview", "0" * 64) for i in range(4)], sums, 2)
    assert [loss.nll_sum is None for loss in losses] == [False, True, True, False]
    assert [loss.reason for loss in losses] == [None, "non_finite_loss:nan", "non_finite_loss:inf", None]
    assert {loss.predicted_tokens for loss in losses} == {2}


def test_a_known_failure_is_the_reason_of_every_null() -> None:
    losses = window_losses([(0, "final", "0" * 64)], [math.nan], 4, failure="load_failed")
    assert losses[0].reason == "load_failed"


def test_memory_errors_are_classified_and_others_pass() -> None:
    import torch

    host, device = StepExit.OUT_OF_HOST_MEMORY, StepExit.OUT_OF_MEMORY
    for error, exit_ in (
        (MemoryError("x"), host),
        (torch.OutOfMemoryError("CUDA out of memory"), device),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), host),
    ):
        with pytest.raises(OutOfMemory, match="with 8 windows") as raised, memory_errors(8):
            raise error
        assert raised.value.exit_code == exit_
    with pytest.raises(RuntimeError, match="other"), memory_errors(8):
        raise RuntimeError("other")


def test_placement_on_the_cpu_computes_in_single_precision() -> None:
    where = Placement.choose(0, "BF16")
    assert (where.label, where.dtype_name) == ("cpu", "float32")


def test_promised_devices_that_are_not_there_are_no_reason_to_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Transient, match="2 devices"):
        Placement.choose(2, "BF16", 0.9)


def test_contract_names_device_type_attention_and_batch() -> None:
    import torch

    contract = contract_of(Table(torch.zeros(2, 2)), 4)
    assert contract.model_dump() == {"device": "cpu", "dtype": "float32", "attention": "eager", "batch": 4}


def test_determinism_and_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("EVPACK_THREADS", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    try:
        limits: list[tuple[float, int]] = []
        with monkeypatch.context() as two_devices:
            two_devices.setattr(torch.cuda, "device_count", lambda: 2)
            two_devices.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
            prepare_process("strict", 0.9)
        assert limits == [(0.9, 0), (0.9, 1)]
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        prepare_process("throughput")
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("determinism", "flash", "kernels"),
    [("throughput", True, "sdpa"), ("throughput", False, "sdpa without flash"), ("strict", True, "sdpa math")],
)
def test_a_mode_is_applied_in_the_process_and_told_by_the_contract(
    determinism: str, flash: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    strict = determinism == "strict"
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    model = Table(torch.zeros(2, 2))
    model.config._attn_implementation = "sdpa"
    try:
        draws = []
        for _ in range(2):
            prepare_process(determinism, flash=flash)
            draws.append((random.random(), float(np.random.random()), float(torch.rand(1))))  # noqa: S311
        assert draws[0] == draws[1]
        assert (cudnn.deterministic, cudnn.benchmark) == (strict, not strict)
        assert (cudnn.allow_tf32, cuda.matmul.allow_tf32) == (not strict, not strict)
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if strict else None)
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == ("0" if strict else "1")
        assert "expandable_segments" in os.environ["PYTORCH_CUDA_ALLOC_CONF"]
        assert cuda.flash_sdp_enabled() is cuda.cudnn_sdp_enabled() is (flash and not strict)
        assert cuda.mem_efficient_sdp_enabled() is not strict and cuda.math_sdp_enabled()
        assert contract_of(model, 1).attention == kernels
        query = torch.randn(1, 2, 8, 4)
        by_hand = torch.softmax(query @ query.mT / 2, -1) @ query
        found = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert torch.allclose(found, by_hand, atol=1e-5)
    finally:
        prepare_process("throughput")
        os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)

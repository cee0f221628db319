import gc

import pytest
import torch  # noqa: TID253

from evpack.checkpoint import memory


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(memory, "_free", {})


def kept():
    return {size: len(tensors) for size, tensors in memory._free.items() if tensors}


SIZE = memory.SMALLEST


def test_memory_is_lent_again_once_nothing_refers_to_it():
    one = memory.empty(SIZE)
    place = one.data_ptr()
    view = one.view(torch.bfloat16)[5:].view(torch.int16)
    del one
    gc.collect()
    assert kept() == {}, "a view of it is still there"
    del view
    assert kept() == {SIZE: 1}
    again = memory.empty(SIZE)
    assert again.data_ptr() == place
    assert kept() == {}


def test_what_is_lent_is_lent_to_one():
    lent = [memory.empty(SIZE) for _ in range(3)]
    for number, tensor in enumerate(lent):
        tensor.fill_(number)
    del lent[0], tensor
    lent.append(memory.empty(SIZE).fill_(9))
    assert [int(tensor[-1]) for tensor in lent] == [1, 2, 9]


def test_an_array_or_bytes_view_of_it_counts_as_a_reference():
    view = memory.empty(SIZE).numpy().data
    assert kept() == {}
    del view
    assert kept() == {SIZE: 1}


def test_other_sizes_are_other_memory_and_small_ones_are_not_kept():
    memory.empty(SIZE)
    memory.empty(SIZE + 1)
    memory.empty(SIZE - 1)
    assert kept() == {SIZE: 1, SIZE + 1: 1}


def test_what_is_kept_has_a_limit(monkeypatch):
    monkeypatch.setattr(memory, "KEPT_BYTES", 3 * SIZE)
    lent = [memory.empty(SIZE) for _ in range(3)]
    lent.clear()
    assert kept() == {SIZE: 3}
    memory.empty(2 * SIZE)
    assert kept() == {2 * SIZE: 1}, "memory of other sizes is let go"
    memory.empty(4 * SIZE)
    assert 4 * SIZE not in kept()


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (), (1024, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_like_a_tensor(shape, dtype):
    model = torch.zeros(shape, dtype=dtype)
    made = memory.empty_like(model)
    assert (made.shape, made.dtype, made.device) == (model.shape, dtype, model.device)
    assert memory.empty_like(torch.zeros(4, 6).T).is_contiguous()


def test_like_a_tensor_on_a_device_is_on_that_device():
    assert memory.empty_like(torch.empty(2, 3, device="meta").T).device.type == "meta"

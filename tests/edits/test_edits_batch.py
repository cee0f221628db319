import errno
import io
from collections import Counter
from pathlib import Path
from threading import Event

import pytest
import torch  # noqa: TID253

from evpack.catalog.edit_spec import parse_edit_spec, resolve_edit
from evpack.checkpoint.background import Behind, read_ahead
from evpack.checkpoint.delta import DeltaCheckpoint
from evpack.checkpoint.reader import Checkpoint, contents_of
from evpack.edits import apply_edit, apply_edits
from evpack.edits.driver import is_finite
from evpack.errors import BadInput, CheckpointError, DiskFull

SPECS = {
    "rtn": "quant_rtn:4:4:all",
    "rtn_ffn": "quant_rtn:8:8:ffn",
    "fp8": "fp8_quant:e5m2:attn",
    "prune": "magnitude_prune:0.5:all",
    "prune_one": "magnitude_prune:0.1:ffn@layer=1",
    "svd": "lowrank_svd:2:ffn",
}


class Counting(Checkpoint):
    """Counts how often each tensor is read."""

    def __init__(self, path):
        super().__init__(path, contents_of(Checkpoint(path)).tensors)
        self.reads = Counter()

    def read(self, name):
        self.reads[name] += 1
        return super().read(name)


def edit(spec):
    return resolve_edit(parse_edit_spec(spec), None)


def places(root, specs):
    for name in specs:
        (root / name).mkdir(parents=True)
    return {name: (edit(spec), root / name) for name, spec in specs.items()}


def test_one_pass_and_single_ones_give_the_same_bytes(tmp_path, block, checkpoint_of):
    checkpoint = checkpoint_of(block)
    made = apply_edits(checkpoint, places(tmp_path / "batch", SPECS))
    for name, (one, directory) in places(tmp_path / "single", SPECS).items():
        apply_edit(checkpoint, one, directory, scenario=name)
        for file in ("delta.safetensors", "variant.json"):
            assert (made[name].path / file).read_bytes() == (directory / file).read_bytes(), name


def test_a_pass_reads_each_tensor_of_any_edit_once(tmp_path, block, checkpoint_of):
    counting = Counting(checkpoint_of(block).path)
    apply_edits(counting, places(tmp_path / "batch", SPECS))
    projections = {name for name in block if "proj" in name}
    assert counting.reads == dict.fromkeys(projections, 1)


def test_an_edit_that_cannot_be_made_stops_no_other(tmp_path, block, checkpoint_of):
    specs = {"far": "quant_rtn:4:4:ffn@layer=9", **SPECS, "wide": "lowrank_svd:9:all"}
    made = apply_edits(checkpoint_of(block), places(tmp_path / "batch", specs))
    assert isinstance(made["far"], BadInput) and isinstance(made["wide"], BadInput)
    assert all(isinstance(made[name], DeltaCheckpoint) for name in SPECS)


def test_a_decomposition_that_does_not_converge_ends_its_own_edit_only(tmp_path, block, checkpoint_of, monkeypatch):
    def fails(matrix, rank):
        raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge\nand more")

    monkeypatch.setattr("evpack.edits.lowrank_svd._leading_eigenvectors", fails)
    made = apply_edits(checkpoint_of(block), places(tmp_path / "batch", SPECS))
    assert isinstance(made["svd"], CheckpointError)
    assert made["svd"].what.endswith(
        "'model.layers.0.mlp.down_proj.weight': linalg.eigh: the algorithm failed to converge"
    )
    assert all(isinstance(made[name], DeltaCheckpoint) for name in SPECS if name != "svd")


def test_a_damaged_tensor_ends_the_edits_that_touch_it(tmp_path, block, checkpoint_of):
    name = "model.layers.0.self_attn.q_proj.weight"
    block[name][1, 2] = float("nan")
    made = apply_edits(checkpoint_of(block), places(tmp_path / "batch", SPECS))
    for scenario in ("rtn", "fp8", "prune"):
        assert isinstance(made[scenario], CheckpointError) and name in made[scenario].what
        assert not (tmp_path / "batch" / scenario / "variant.json").exists()
    for scenario in ("rtn_ffn", "prune_one", "svd"):
        assert isinstance(made[scenario], DeltaCheckpoint)


@pytest.mark.parametrize("overlap", [0, 1 << 28])
def test_a_disk_that_fills_up_is_told_with_the_tensor(tmp_path, block, checkpoint_of, monkeypatch, overlap):
    monkeypatch.setattr("evpack.checkpoint.background.OVERLAP_BYTES", overlap)

    class Device(io.FileIO):
        """Takes 900 bytes, in pieces."""

        def write(self, data):
            room = 900 - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[: min(room, 100)])

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Device(path, "x") if a == ("xb",) else real(path, *a, **k))
    with pytest.raises(DiskFull, match=r"no space left while writing tensor '.*proj.weight' to .*delta"):
        apply_edits(checkpoint_of(block), places(tmp_path / "batch", {"rtn": SPECS["rtn"]}))
    assert not (tmp_path / "batch" / "rtn" / "variant.json").exists()


def test_reading_ahead_keeps_order_and_raises_at_the_tensor(block, checkpoint_of):
    checkpoint = checkpoint_of(block)
    names = sorted(block, reverse=True)
    assert [(name, bool((tensor == block[name]).all())) for name, tensor in read_ahead(checkpoint, names)] == [
        (name, True) for name in names
    ]

    class Broken(Checkpoint):
        def read(self, name):
            if name == names[2]:
                raise CheckpointError(f"tensor {name!r} is gone")
            return super().read(name)

    seen = []
    with pytest.raises(CheckpointError, match=names[2]):
        for name, _ in read_ahead(Broken(checkpoint.path), names):
            seen.append(name)
    assert seen == names[:2]


def test_work_behind_runs_in_order_and_tells_its_error_at_the_latest_when_waited_for():
    behind, done = Behind(), []
    for number in range(20):
        behind.run(lambda number=number: done.append(number), 1)
    behind.wait()
    assert done == list(range(20))

    def fail():
        raise DiskFull("full")

    with pytest.raises(DiskFull):
        behind.run(fail, 1)
        behind.run(lambda: done.append(99), 1)
        behind.wait()
    assert 99 not in done, "nothing runs after an error"
    behind.run(lambda: done.append(20), 1)
    behind.wait()
    assert done == list(range(21))


def test_no_more_waits_than_may(monkeypatch):
    monkeypatch.setattr("evpack.checkpoint.background.OVERLAP_BYTES", 10)
    behind, gate, done = Behind(), Event(), []

    def work(number):
        gate.wait()
        done.append(number)

    for number in range(2):
        behind.run(lambda number=number: work(number), 5)
    assert done == [], "two of five bytes wait"
    gate.set()
    behind.run(lambda: work(2), 11)
    assert done == [0, 1, 2], "what is too large is done at once, after what came before"


def test_no_more_is_read_ahead_than_may_wait(monkeypatch, block, checkpoint_of):
    monkeypatch.setattr("evpack.checkpoint.background.OVERLAP_BYTES", 400)
    reads = []

    class Watched(Checkpoint):
        def read(self, name):
            reads.append(name)
            return super().read(name)

    checkpoint = Watched(checkpoint_of(block).path)
    names = checkpoint.names()
    for position, (name, _) in enumerate(read_ahead(checkpoint, names)):
        assert name == names[position]
        ahead = reads[position + 1 :]
        assert sum(checkpoint.info(other).nbytes for other in ahead) <= 400
    assert reads == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.0])
@pytest.mark.parametrize("where", [0, 517, 1022])
def test_non_finite_entries_are_found_wherever_they_are(dtype, value, where):
    tensor = torch.linspace(-1, 1, 1023).to(dtype)
    tensor[where] = value
    assert is_finite(tensor.reshape(33, 31)) is (value == 1.0)
    assert is_finite(torch.zeros(0, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_entries_may_have_a_sum_that_is_not(dtype):
    tensor = torch.full((33, 31), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(tensor) and is_finite(-tensor)
    tensor[0, 0], tensor[32, 30] = float("inf"), -float("inf")
    assert not is_finite(tensor)

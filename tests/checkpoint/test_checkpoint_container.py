import json
import struct

import pytest
import torch  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evpack.checkpoint.container import (
    ContainerWriter,
    info_of,
    read_header,
    read_tensor,
    same_bytes,
    tensor_bytes,
    tensor_sha256,
)
from evpack.errors import CheckpointError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start, end, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_the_library_writes(tmp_path, dtype):
    tensors = {"a": (torch.arange(12) % 2).reshape(3, 4).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    slots = read_header(tmp_path / "x.safetensors")
    assert slots.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bytes(read_tensor(slots[name]), tensor)
        assert slots[name].info == info_of(tensor)


def test_empty_tensors_and_empty_files_are_read(tmp_path):
    save_file({"none": torch.zeros(0, 4), "one": torch.ones(1)}, tmp_path / "a.safetensors")
    assert read_tensor(read_header(tmp_path / "a.safetensors")["none"]).shape == (0, 4)
    with ContainerWriter(tmp_path / "b.safetensors", []):
        pass
    assert read_header(tmp_path / "b.safetensors") == {}


@settings(max_examples=25, deadline=None)
@given(kept=st.sets(st.sampled_from(["a", "b", "c", "naïve"])), seed=st.integers(0, 99))
def test_the_library_reads_what_we_write_whichever_candidates_go_in(tmp_path_factory, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "a": torch.randn(3, 5, generator=generator).bfloat16(),
        "b": torch.randn(1, generator=generator),
        "c": torch.randn(2, 2, 2, generator=generator).half(),
        "naïve": torch.arange(7),
    }
    path = tmp_path_factory.mktemp("container") / "x.safetensors"
    with ContainerWriter(path, [(name, info_of(tensor)) for name, tensor in tensors.items()]) as writer:
        for name in sorted(kept):
            writer.add(name, tensors[name])
    loaded = load_file(path)
    assert loaded.keys() == kept
    assert all(same_bytes(loaded[name], tensors[name]) for name in kept)
    assert read_header(path).keys() == kept
    with safe_open(path, "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_same_bytes_distinguishes_signed_zeros_and_equates_nan():
    nan = torch.tensor([float("nan")])
    assert same_bytes(nan, nan.clone())
    assert not same_bytes(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bytes(torch.zeros(2, 3), torch.zeros(3, 2))
    assert not same_bytes(torch.zeros(2), torch.zeros(2).int())


def test_bytes_are_row_major_whatever_the_strides():
    matrix = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    assert bytes(tensor_bytes(matrix.T)) == bytes([0, 3, 1, 4, 2, 5])
    assert tensor_sha256(matrix.T) == tensor_sha256(matrix.T.contiguous())


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": entry(0, 4)}, b"123", "truncated: tensor 'a'"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456", "'b' at byte .* overlaps"),
        ({"a": entry(0, 2), "b": entry(3, 4)}, b"1234", "'b' at byte .* leaves a gap"),
        ({"a": entry(1, 4)}, b"1234", "'a' at byte .* leaves a gap"),
        ({"a": entry(0, 2)}, b"1234", "2 bytes after the last tensor"),
        ({"a": entry(0, 10**15)}, b"1234", "truncated: tensor 'a'"),
        ({"a": entry(0, 4, shape=[3])}, b"1234", "needs 3 bytes but its offsets hold 4"),
        ({"a": entry(0, 4, shape=[-4])}, b"1234", r"shape \[-4\]"),
        ({"a": entry(0, 4, shape=[True, 4])}, b"1234", "shape"),
        ({"a": entry(0, 4, shape="4")}, b"1234", "shape '4'"),
        ({"a": entry(0, 4, dtype="U4")}, b"1234", "element type 'U4'"),
        ({"a": entry(0, 4, dtype=["U8"])}, b"1234", r"element type \['U8'\]"),
        ({"a": entry(0, 0, shape=[0, 10**30])}, b"", r"'a' has shape \[0, 10{30}\]"),
        ({"a": {"dtype": "U8", "shape": [4]}}, b"1234", "'a' has no dtype, shape and pair"),
        ({"a": [1, 2]}, b"1234", "'a' has no dtype"),
        ([1], b"", "not an object"),
        (b'{"a":{},"a":{}}', b"", "stands twice"),
        (b"{", b"", "not JSON"),
        (b"\xff\xfe", b"", "not UTF-8"),
    ],
)
def test_damaged_headers_are_refused_by_name(tmp_path, header, data, says):
    path = write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 2**63), struct.pack("<Q", 100) + b"{}"])
def test_a_file_too_short_for_its_header_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="too few"):
        read_header(path)


def test_a_file_cut_after_its_header_was_read_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    slot = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor 'a': the file ends at byte .* in the middle"):
        read_tensor(slot)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor 'a' cannot be read \(No such file"):
        read_tensor(slot)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_read_as_something_else(tmp_path_factory, position, value):
    path = tmp_path_factory.mktemp("mutation") / "x.safetensors"
    save_file({"a": torch.arange(20.0), "b": torch.arange(5)}, path)
    content = bytearray(path.read_bytes())
    position %= len(content)
    before = bytes(content)
    content[position] = value
    path.write_bytes(content)
    try:
        slots = read_header(path)
    except CheckpointError:
        return
    seen = {name: (slot.info, tensor_sha256(read_tensor(slot))) for name, slot in slots.items()}
    path.write_bytes(before)
    original = {name: (slot.info, tensor_sha256(read_tensor(slot))) for name, slot in read_header(path).items()}
    in_data = position >= 8 + struct.unpack("<Q", before[:8])[0]
    assert (seen != original) or bytes(content) == before or not in_data

"""Large tensor files in completion markers: whoever publishes them names the digest of every tensor beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evpack.files import sha256_bytes
from evpack.plan.model import StepPlan, StepType
from evpack.rundir import RunDir
from evpack.steps import state

STEP = StepPlan(id="m.s.create", type=StepType.CREATE, model="m", scenario="s", lane="cpu_s")
LARGE, SMALL = b"x" * (state.REHASH_LIMIT + 1), b"x"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    place = RunDir(tmp_path).model("m").variant("s")
    place.mkdir(parents=True)
    return place


def written(place: Path, files: dict[str, bytes]) -> tuple[RunDir, state.Marker]:
    for name, content in files.items():
        (place / name).write_bytes(content)
    run = RunDir(place.parents[2])
    return run, state.write_marker(run, STEP, input_digest="0", published=[place], dag_run=None, attempt=1)


@pytest.mark.parametrize(
    ("name", "content", "hashed"),
    [
        ("delta.safetensors", LARGE, False),
        ("delta.safetensors", SMALL, True),
        ("tokenizer.json", LARGE, True),
    ],
)
def test_only_large_tensor_files_are_not_hashed_again(published: Path, name: str, content: bytes, hashed: bool) -> None:
    run, marker = written(published, {name: content, "variant.json": b"{}"})
    entry = marker.outputs[f"m/models/s/{name}"]
    assert entry == {"sha256": sha256_bytes(content) if hashed else None, "bytes": len(content)}
    assert marker.outputs["m/models/s/variant.json"]["sha256"] == sha256_bytes(b"{}")
    assert state.read_marker(run, STEP.id) == marker
    assert marker.intact(run)


def test_a_large_tensor_file_of_another_size_is_not_intact(published: Path) -> None:
    run, marker = written(published, {"delta.safetensors": LARGE, "variant.json": b"{}"})
    (published / "delta.safetensors").write_bytes(LARGE + b"x")
    assert not marker.intact(run)


def test_the_description_alone_tells_outputs_apart(published: Path) -> None:
    _, one = written(published, {"delta.safetensors": LARGE, "variant.json": b"{}"})
    _, other = written(published, {"delta.safetensors": LARGE, "variant.json": b"{ }"})
    assert one.outputs_digest() != other.outputs_digest()

"""Devices per model, and disk space: the reference's worked examples among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import BadInput
from evpack.home import Home
from evpack.plan import memory
from evpack.plan.disk import ModelSpace, check_space, existing_parent, required_gb, variant_budget_gb
from evpack.plan.memory import Devices, devices_needed, host_devices, scoring_gb
from evpack.plan.nvml import DeviceFacts
from evpack.settings_resolve import resolve


def settings(**params: Any) -> Any:
    return resolve(params, {}, {}, {})


def devices(*memory_gb: float) -> list[DeviceFacts]:
    return [DeviceFacts(f"GPU-{index}", index, size, size, 0, None) for index, size in enumerate(memory_gb)]


def test_logits_of_the_real_batch_are_planned() -> None:
    # 32 windows x 512 tokens x 32,000 words x 4 bytes = 2.097 GB; overhead 6 GB
    assert scoring_gb(14.0, 32_000, settings()) == pytest.approx(14 + 2.097152 + 6)


@pytest.mark.parametrize(
    ("weights", "vocab", "devices", "expected"),
    [
        (14, 32_000, Devices(1, 80), 1),
        (68, 64_000, Devices(8, 80), 2),  # 78.2 GB against 0.92 x 80
        (144, 152_000, Devices(8, 80), 4),  # 160 GB: three devices, so the lane of four
        (0.3, 49_152, Devices(0), 0),
        (14, 32_000, Devices(8, 12), 4),
    ],
)
def test_devices_needed(weights: float, vocab: int, devices: Devices, expected: int) -> None:
    assert devices_needed("m", weights, vocab, devices, settings()) == expected


@pytest.mark.parametrize("devices", [Devices(1, 80), Devices(2, 80), Devices(3, 70), Devices(8, 0)])
def test_a_model_that_does_not_fit_is_refused(devices: Devices) -> None:
    with pytest.raises(BadInput, match="a/big does not fit"):
        devices_needed("a/big", 144, 152_000, devices, settings())


@pytest.mark.parametrize(("count", "weights", "least", "lane"), [(3, 150, 3, 4), (5, 300, 5, 8), (7, 440, 7, 8)])
def test_a_refusal_says_that_lanes_have_no_such_number(count: int, weights: float, least: int, lane: int) -> None:
    with pytest.raises(BadInput) as caught:
        devices_needed("m", weights, 32_000, Devices(count, 80), settings())
    words = f"{least} devices of 73.6 GB each; lanes give 1, 2, 4, 8, so it takes {lane}, and there are {count}"
    assert words in caught.value.what


@given(st.floats(0.1, 500), st.floats(0.1, 500), st.sampled_from([1, 2, 4, 8]))
def test_more_weights_never_need_fewer_devices(a: float, b: float, count: int) -> None:
    def need(weights: float) -> int:
        try:
            return devices_needed("m", weights, 32_000, Devices(count, 80), settings())
        except BadInput:
            return 99

    small, large = sorted((a, b))
    assert need(small) <= need(large)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, Devices(4, 24)),
        ({"num_gpus": 2}, Devices(2, 48)),
        ({"num_gpus": 0}, Devices(0)),
        ({"num_gpus": 9, "gpu_memory_gb": 20}, Devices(4, 20)),
        ({"gpu_memory_gb": 20, "gpu_memory_per_device": 18}, Devices(4, 18)),
        ({"cuda_visible_devices": "1,3"}, Devices(2, 48)),
        ({"gpu_id_list": "0,7"}, Devices(1, 80)),
        ({"cuda_visible_devices": "GPU-2"}, Devices(1, 24)),
        ({"cuda_visible_devices": "-1"}, Devices(0)),
    ],
)
def test_device_pool(params: dict[str, Any], expected: Devices, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_devices", lambda: devices(80.0, 48.0, 24.0, 80.0))
    assert host_devices(settings(**params), home) == expected


def test_devices_that_never_have_enough_free_are_none_to_plan_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_devices", lambda: devices(8.0, 8.0))
    with pytest.raises(BadInput, match=r"no device can serve: GPU-0: 8\.0 GB in all, GPU_MIN_FREE_GB=10; GPU-1"):
        host_devices(settings(), home)
    assert host_devices(settings(gpu_min_free_gb=4), home) == Devices(2, 8)
    assert host_devices(settings(num_gpus=1), home) == Devices(1, 8)  # shared with its user
    with pytest.raises(BadInput, match="GPU_MIN_FREE_GB"):
        host_devices(settings(cuda_visible_devices="1"), home)
    monkeypatch.setattr(memory, "read_devices", lambda: devices(80.0, 8.0, 48.0))
    assert host_devices(settings(), home) == Devices(2, 48)
    monkeypatch.setattr(memory, "read_devices", lambda: devices(8.0))
    assert host_devices(settings(), home) == Devices(1, 8)


def test_hidden_devices_and_hosts_without_any(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_devices", lambda: devices(80.0))
    assert host_devices(resolve({}, {}, {"CUDA_VISIBLE_DEVICES": ""}, {}), home) == Devices(0)
    monkeypatch.setattr(memory, "read_devices", list)
    assert host_devices(settings(num_gpus=8, gpu_memory_gb=80), home) == Devices(0)
    assert host_devices(settings(cuda_visible_devices="0,1"), home) == Devices(0)


@pytest.mark.parametrize(
    ("mode", "cache", "expected"),
    [
        ("snapshot_symlink", "here", 42),
        ("snapshot_symlink", "elsewhere", 28),
        ("snapshot_symlink", None, 28),  # everything arrived already
        ("snapshot_copy", "here", 56),
        ("save_pretrained", "here", 56),
    ],
)
def test_worked_examples_of_disk_space(mode: str, cache: str | None, expected: float, tmp_path: Path) -> None:
    arrives = {"here": tmp_path / "hub", "elsewhere": Path("/proc/hub"), None: None}[cache]
    model = ModelSpace(14, arrives, edits_gb=14, errors_gb=14)
    run = tmp_path / "run"
    assert required_gb(run, [model], settings(baseline_storage_mode=mode, min_free_disk_gb=0)) == expected
    assert required_gb(run, [model, model], settings(baseline_storage_mode=mode)) == 2 * expected + 200


def test_room_for_variants_is_what_the_disk_has_beyond_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSpace(14, None, edits_gb=14, errors_gb=14, all_gb=280)
    free = 28.0 + 200
    monkeypatch.setattr("evpack.plan.disk.free_gb", lambda _: free)
    assert required_gb(tmp_path, [model], settings()) == free  # the least, so the campaign is planned ...
    assert variant_budget_gb(tmp_path, [model], settings()) == 28  # ... and variants come and go
    free = 128.0 + 200
    assert variant_budget_gb(tmp_path, [model], settings()) == 128
    free = 280.0 + 200
    assert variant_budget_gb(tmp_path, [model], settings()) is None
    assert variant_budget_gb(tmp_path, [model], settings(variant_budget_gb=40)) == 40
    assert required_gb(tmp_path, [model], settings(variant_budget_gb=40)) == 240
    assert variant_budget_gb(tmp_path, [model], settings(keep_variants=True)) is None
    assert required_gb(tmp_path, [model], settings(keep_variants=True)) == 480


def test_disk_preflight(tmp_path: Path) -> None:
    model = ModelSpace(1e9, None, 0, 0)
    huge = settings(baseline_storage_mode="snapshot_copy", min_free_disk_gb=0)
    with pytest.raises(BadInput, match="no disk space"):
        check_space(tmp_path / "a" / "b", [model], huge)
    check_space(tmp_path, [model], huge.model_copy(update={"skip_disk_preflight": True}))
    check_space(tmp_path, [], huge)
    elsewhere = ModelSpace(1, Path("/proc/hub"), 0, 0)  # a file system without any free space
    with pytest.raises(BadInput, match=r"1\.0 GB of weights arrive in /proc/hub, 0\.0 GB are free"):
        check_space(tmp_path, [elsewhere], settings(min_free_disk_gb=0))
    assert existing_parent(tmp_path / "a" / "b") == tmp_path

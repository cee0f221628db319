"""What devices say, which of them the settings admit, and which may be taken now."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.errors import BadInput, Transient
from evpack.home import Home
from evpack.plan import nvml
from evpack.plan.memory import host_devices
from evpack.plan.nvml import SIMULATED_ENV, DeviceFacts, in_pool, read_devices
from evpack.runtime.gpu import IDLE_USED_GB, Demand, cached_devices, never, not_now
from evpack.settings import Settings
from evpack.settings_resolve import resolve
from tests.runtime.conftest import Pretend, campaign


def device(**facts: Any) -> DeviceFacts:
    return DeviceFacts(
        **{"uuid": "GPU-0", "index": 0, "memory_gb": 80, "free_gb": 80, "processes": 0, "fault": None, **facts}
    )


HOST = [device(uuid=f"GPU-{name}", index=index) for index, name in enumerate(("aa", "ab", "cc", "dd"))]


@pytest.mark.parametrize(
    ("params", "environ", "expected"),
    [
        ({}, {}, [0, 1, 2, 3]),
        ({}, {"CUDA_VISIBLE_DEVICES": "3,1"}, [3, 1]),
        ({}, {"CUDA_VISIBLE_DEVICES": "3,1", "GPU_ID_LIST": "0"}, [3, 1]),
        ({}, {"GPU_ID_LIST": "0,2"}, [0, 2]),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"num_gpus": 2}, {"GPU_ID_LIST": "3,2,1"}, [3, 2]),
        ({"num_gpus": 0}, {}, []),
        ({}, {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-a,0,9,-1"}, [2, 0, 1]),
    ],
)
def test_pool(params: dict[str, Any], environ: dict[str, str], expected: list[int]) -> None:
    assert [found.index for found in in_pool(HOST, resolve(params, {}, environ, {}))] == expected


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "GPU_ID_LIST"])
@pytest.mark.parametrize(
    ("value", "count"),
    [("MIG-aa", None), ("2", None), ("-2", None), ("9,GPU-x", None), ("-1", 0), ("-1,7", None), ("9,1", 1)],
)
def test_a_pool_of_devices_that_are_not_there_is_refused(
    name: str, value: str, count: int | None, pretend: Pretend, home: Home
) -> None:
    settings = resolve({}, {}, {name: value}, {})
    pretend(count=2)
    if count is None:
        with pytest.raises(BadInput, match=f"{name}={value} names none of this host's 2 devices"):
            host_devices(settings, home)
    else:
        assert host_devices(settings, home).count == count
    pretend()
    assert host_devices(settings, home).count == 0  # a host without devices computes on the CPU whatever is named


def test_pretended_devices_say_so(pretend: Pretend) -> None:
    pretend({"used_gb": 30, "processes": [7, 8]}, {"health": "Xid 79"}, {"used_gb": 90})
    first, sick, full = read_devices()
    assert first == device(free_gb=50, processes=2, simulated=True)
    assert (sick.fault, full.free_gb) == ("Xid 79", 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[]", "valid dictionary|valid"),
        ('{"devices": [{"uuid": "a"}]}', r"devices\.0\.memory_gb"),
        ('{"devices": [{"uuid": "../a", "memory_gb": 1}]}', "UUID"),
        ('{"devices": [{"uuid": "a", "memory_gb": 1}, {"uuid": "a", "memory_gb": 1}]}', "two devices"),
        ('{"devices": [{"uuid": "a", "memory_gb": 0}]}', "greater than 0"),
        ('{"devices": [], "more": 1}', "more"),
    ],
)
def test_a_wrong_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gpus.json"
    file.write_text(content)
    with pytest.raises(BadInput, match=message):
        read_devices({SIMULATED_ENV: str(file)})
    with pytest.raises(BadInput, match="cannot be read"):
        read_devices({SIMULATED_ENV: str(tmp_path / "nothing")})


class _Nvml:
    """NVML as a host with one sound device, one with an ECC error, one lost and one that does not even name itself."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    class NVMLError_NoPermission(NVMLError):  # noqa: N801
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801
        pass

    class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801
        pass

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    def __init__(self) -> None:
        self.shut = False

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut = True

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 3:
            raise self.NVMLError("unknown error")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if handle == 2:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=80e9, free=60e9)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:
        if handle == 1:
            raise self.NVMLError_NoPermission
        return [1, 2]

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:
        if handle == 0:
            raise self.NVMLError_NotSupported
        return 3

    def nvmlDeviceGetName(self, handle: int) -> str:
        if handle == 2:
            raise self.NVMLError("GPU is lost")
        return "Example 80"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return (8, 9 - handle)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, int, int]:
        return (1, 0, 0, 0)


def test_what_nvml_says(monkeypatch: pytest.MonkeyPatch) -> None:
    host = _Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", host)
    sound, ecc, lost = read_devices({})
    assert sound == device(free_gb=60, processes=2, name="Example 80", capability="8.9", driver="580.1")
    assert (sound.has_fp8, ecc.has_fp8, lost.name) == (True, False, None)
    assert ecc.fault is not None and ecc.fault.startswith("3 uncorrected ECC errors") and ecc.processes == 0
    assert lost.fault == "NVML: GPU is lost" and lost.free_gb == 0
    assert host.shut


def test_no_driver_means_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    host = _Nvml()

    def no_driver() -> None:
        raise host.NVMLError_LibraryNotFound("no driver")

    monkeypatch.setattr(host, "nvmlInit", no_driver)
    monkeypatch.setitem(sys.modules, "pynvml", host)
    assert read_devices({}) == []


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_does_not_answer_is_no_host_without_devices(
    call: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = _Nvml()

    def mismatch() -> None:
        raise host.NVMLError("Driver/library version mismatch")

    monkeypatch.setattr(host, call, mismatch)
    monkeypatch.setitem(sys.modules, "pynvml", host)
    with pytest.raises(Transient, match="version mismatch"):
        read_devices({})
    assert host.shut == (call != "nvmlInit")
    assert host_devices(Settings(num_gpus=0), home).count == 0  # who wants no device asks no driver


# --- eligibility -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, None),
        ({"free_gb": 9.9}, "9.9 GB free"),
        ({"free_gb": 80 - IDLE_USED_GB}, None),
        ({"free_gb": 78}, "cannot be seen"),
        ({"processes": 1}, "1 other processes"),
    ],
)
def test_who_may_be_taken_now(facts: dict[str, Any], reason: str | None) -> None:
    why = not_now(device(**facts), Demand(1, 10, idle=True))
    assert (why is None) if reason is None else (why is not None and reason in why)


def test_a_small_device_never_will_do() -> None:
    assert never(device(memory_gb=8, free_gb=8), Demand(1, 10, idle=True)) is not None
    assert never(device(), Demand(1, 10, idle=True)) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Demand(2, 10, idle=True)),
        ({"gpu_min_free_gb": 1}, Demand(2, 4, idle=True)),
        ({"gpu_require_idle": False}, Demand(2, 10, idle=False)),
        ({"num_gpus": 1}, Demand(2, 4, idle=False)),
        ({"gpu_id_list": ("0",)}, Demand(2, 4, idle=False)),
        ({"gpu_id_list": ("0", "1")}, Demand(2, 10, idle=True)),
    ],
)
def test_demand(settings: dict[str, Any], expected: Demand) -> None:
    frozen = Settings(**settings)
    assert Demand.of(campaign(2, 8.0, frozen).models[0], frozen, 4) == expected


def test_the_only_device_is_shared_with_its_user() -> None:
    model = campaign(1, 8.0, Settings()).models[0]
    assert Demand.of(model, Settings(), 1) == Demand(1, 8, idle=False)
    assert Demand.of(model, Settings(), 2) == Demand(1, 10, idle=True)


@given(st.floats(0, 80), st.floats(0, 80), st.integers(0, 3), st.booleans())
def test_what_is_taken_has_the_memory(free: float, need: float, processes: int, idle: bool) -> None:
    if not_now(device(free_gb=free, processes=processes), Demand(1, need, idle)) is None:
        assert free >= need
        assert not idle or (processes == 0 and 80 - free <= IDLE_USED_GB)


def test_facts_are_read_once_in_their_time(pretend: Pretend, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(count=2)
    first = cached_devices(home, 1e6)
    pretend(count=3)
    assert cached_devices(home, 1e6) == first
    assert len(cached_devices(home, 0)) == 3
    monkeypatch.setenv(SIMULATED_ENV, str(home.root / "other.json"))
    (home.root / "other.json").write_text(json.dumps({"devices": []}))
    assert cached_devices(home, 1e6) == []  # another source
    (home.leases / "facts.json").write_text("{")
    assert cached_devices(home, 1e6) == []


def test_nvml_is_the_source_without_a_file() -> None:
    assert nvml.facts_source({}) == nvml.facts_source({SIMULATED_ENV: " "}) == "nvml"

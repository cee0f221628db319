"""What the accelerators of this host say about themselves: NVML, or a file that pretends some.

With EVPACK_SIMULATED_GPUS naming a JSON file, its devices stand in for the host's, so that planning, leases and
quarantine run where no device is. Pretended devices say so (`DeviceFacts.simulated`): steps then compute on the CPU and
their records name the CPU. The file is ``{"devices": [{"uuid", "memory_gb", "used_gb": 0, "processes": [],
"health": "ok"}]}``; any other health is the fault.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evpack.errors import BadInput, EvidenceError, Transient
from evpack.files import GB, parse_json
from evpack.rundir import checked_id
from evpack.settings import Settings

SIMULATED_ENV = "EVPACK_SIMULATED_GPUS"
T = TypeVar("T")


@dataclass(frozen=True)
class DeviceFacts:
    """One accelerator at one moment."""

    uuid: str
    """Unique in the world, safe as a file name."""
    index: int
    """NVML's number: by PCI address."""
    memory_gb: float
    free_gb: float
    processes: int
    """Compute processes that NVML sees; in a container it may see none of them."""
    fault: str | None
    """What is broken, None for a healthy device."""
    simulated: bool = False
    name: str | None = None
    """The product's name; None where it does not tell, and for a pretended device."""
    capability: str | None = None
    """CUDA compute capability, ``major.minor``."""
    driver: str | None = None
    """Version of the driver."""

    @property
    def has_fp8(self) -> bool:
        """Whether it has units for 8-bit floats, which Ada (8.9) was the first to have."""
        return self.capability is not None and tuple(map(int, self.capability.split("."))) >= (8, 9)

    @property
    def used_gb(self) -> float:
        """Memory in use, GB."""
        return self.memory_gb - self.free_gb


class _Simulated(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    uuid: str
    memory_gb: float = Field(gt=0)
    used_gb: float = Field(default=0, ge=0)
    processes: list[int] = []
    health: str = "ok"


class _SimulatedHost(BaseModel):
    model_config = ConfigDict(extra="forbid")

    devices: list[_Simulated]


def facts_source(environ: Mapping[str, str] | None = None) -> str:
    """Where `read_devices` looks: the path of the pretending file, or ``nvml``."""
    return (os.environ if environ is None else environ).get(SIMULATED_ENV, "").strip() or "nvml"


def read_devices(environ: Mapping[str, str] | None = None) -> list[DeviceFacts]:
    """All devices of this host in NVML's order; empty without a driver or a device.

    Raises:
        BadInput: when EVPACK_SIMULATED_GPUS names a file that is not there or not valid.
        Transient: when there is a driver and it does not answer, which says nothing about devices.
    """
    source = facts_source(environ)
    return _read_nvml() if source == "nvml" else _read_file(Path(source))


def in_pool(devices: Iterable[DeviceFacts], settings: Settings) -> list[DeviceFacts]:
    """The devices that the settings admit, in their order: CUDA_VISIBLE_DEVICES, else GPU_ID_LIST, else all.

    NUM_GPUS takes that many from the front. Names are numbers or beginnings of UUIDs; unknown ones are left out.
    """
    found = list(devices)
    names = settings.cuda_visible_devices if settings.cuda_visible_devices is not None else settings.gpu_id_list
    if names is not None:
        chosen = [
            device
            for name in names
            for device in found
            if (device.index == int(name) if name.isdecimal() else device.uuid.startswith(name))
        ]
        found = list(dict.fromkeys(chosen))
    return found if settings.num_gpus is None else found[: settings.num_gpus]


def shared_with_user(settings: Settings, devices: int) -> bool:
    """Whether a host is taken as shared with its user: steps need no idle device and no GPU_MIN_FREE_GB then.

    A display takes memory of a workstation's only device and never lets it go: a step would wait for ever.

    Args:
        devices: that the host has, not only those that the settings admit.
    """
    return devices == 1 or settings.num_gpus == 1 or settings.gpu_id_list == ("0",)


def _read_file(path: Path) -> list[DeviceFacts]:
    mend = f"set {SIMULATED_ENV} to a file with devices, or unset it"
    try:
        host = _SimulatedHost.model_validate(parse_json(path.read_bytes(), str(path)))
    except OSError as error:
        raise BadInput(f"{SIMULATED_ENV}={path} cannot be read ({error.strerror})", mend) from error
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"]))
        raise BadInput(f"{SIMULATED_ENV}={path}: {place}: {detail['msg']}", mend) from error
    except EvidenceError as error:
        raise BadInput(f"{SIMULATED_ENV}: {error.what}", mend) from error
    uuids = [checked_id(device.uuid, "device UUID") for device in host.devices]
    if len(set(uuids)) != len(uuids):
        raise BadInput(f"{SIMULATED_ENV}={path}: two devices have one UUID", mend)
    return [
        DeviceFacts(
            uuid=device.uuid,
            index=index,
            memory_gb=device.memory_gb,
            free_gb=max(0.0, device.memory_gb - device.used_gb),
            processes=len(device.processes),
            fault=None if device.health == "ok" else device.health,
            simulated=True,
        )
        for index, device in enumerate(host.devices)
    ]


def _read_nvml() -> list[DeviceFacts]:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            found = (_read_one(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
            return [device for device in found if device is not None]
        finally:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        raise Transient(
            f"the driver of the accelerators does not answer (NVML: {error})",
            "see `nvidia-smi`; with NUM_GPUS=0 a campaign is planned for the CPU",
        ) from error


def _read_one(nvml: Any, index: int) -> DeviceFacts | None:
    """A device, broken when it does not answer; None when it does not even tell its UUID."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = checked_id(str(nvml.nvmlDeviceGetUUID(handle)), "device UUID")
    except nvml.NVMLError:
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        processes = _ask(nvml, lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)), 0)
        total, free, fault = memory.total / GB, memory.free / GB, _fault(nvml, handle)
    except nvml.NVMLError as error:  # e.g. GPU is lost: it has fallen off the bus (Xid 79)
        total, free, processes, fault = 0.0, 0.0, 0, f"NVML: {error}"
    return DeviceFacts(
        uuid=uuid,
        index=index,
        memory_gb=total,
        free_gb=free,
        processes=processes,
        fault=fault,
        name=_told(nvml, lambda: str(nvml.nvmlDeviceGetName(handle))),
        capability=_told(nvml, lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))),
        driver=_told(nvml, lambda: str(nvml.nvmlSystemGetDriverVersion())),
    )


def _fault(nvml: Any, handle: Any) -> str | None:
    """Memory errors that ECC could not mend; None when there are none or the device does not count them."""
    kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    errors = _ask(nvml, lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, since)), 0)
    if errors:
        return f"{errors} uncorrected ECC errors since the driver was loaded"
    remapped = _ask(nvml, lambda: tuple(nvml.nvmlDeviceGetRemappedRows(handle)), (0, 0, 0, 0))
    return "remapping a row of its memory failed" if remapped[3] else None


def _ask(nvml: Any, question: Callable[[], T], unknown: T) -> T:
    """An answer that not every device or container gives."""
    try:
        return question()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
        return unknown


def _told(nvml: Any, question: Callable[[], str]) -> str | None:
    """What a device says of itself; a broken one, of which that is known already, may say nothing."""
    try:
        return question()
    except nvml.NVMLError:
        return None

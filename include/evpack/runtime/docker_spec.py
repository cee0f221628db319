"""What the container of a step is made of, decided without asking any engine: mounts, environment, limits, labels.

Nothing in a container can be written but the directories that the step publishes into and, for a step on devices, the
leases. Everything stands at the path it has on the host, so links and recorded paths mean the same on both sides.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evpack.errors import BadInput, IntegrityError
from evpack.home import Home
from evpack.plan.memory import devices_of
from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.plan.nvml import SIMULATED_ENV, facts_source
from evpack.plan.sources import converted_dir, hub_cache
from evpack.processes import lives, start_of
from evpack.rundir import RunDir
from evpack.runtime.process import step_environment
from evpack.settings import Settings
from evpack.steps.repeats import repeated_step
from evpack.steps.runtime_manifest import IMAGE_ENV

WORKER_IMAGE_ENV = "EVPACK_WORKER_IMAGE"
MEMORY_ENV = "EVPACK_CONTAINER_MEMORY_GB"
SHM_ENV = "EVPACK_CONTAINER_SHM_GB"

BUILT_IN_ENV = "EVPACK_BUILT_IN"
"""Set in the worker image and what is made from it: a directory that every container has of itself (docker/)."""

LABEL = "evpack."
"""What our labels begin with."""
MAX_PROCESSES = 4096
"""Threads count too: the numeric libraries start some per core, and hosts with devices have many cores."""

_PINNED = re.compile(r"(sha256:|.+@sha256:)[0-9a-f]{64}")
_TMP = "/tmp"  # noqa: S108 - in the container, which has it in memory and for itself
_TMP_BYTES = 10**9
_SHARED_MEMORY = 0.9
"""Part of the host's memory that a step may take by default: the rest keeps host, engine and Airflow alive."""


@dataclass(frozen=True)
class ContainerLimits:
    """What this deployment says about containers."""

    image: str
    """Id or digest of the worker image; a name that can move is refused."""
    memory_bytes: int
    shm_bytes: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> ContainerLimits:
        """From EVPACK_WORKER_IMAGE, EVPACK_CONTAINER_MEMORY_GB and EVPACK_CONTAINER_SHM_GB.

        Raises:
            BadInput: naming the variable.
        """
        image = environ.get(WORKER_IMAGE_ENV, "").strip()
        if not _PINNED.fullmatch(image):
            raise BadInput(
                f"{WORKER_IMAGE_ENV}={image!r} pins no image",
                "give an image id (sha256:...) or a name with a digest; `make worker-image` prints the id it built",
            )
        total = psutil.virtual_memory().total
        return cls(image, _gigabytes(environ, MEMORY_ENV, total * _SHARED_MEMORY), _gigabytes(environ, SHM_ENV, 1e9))


@dataclass(frozen=True)
class Mount:
    """A host path inside the container, at the same place."""

    path: Path
    writable: bool = False


@dataclass(frozen=True)
class Supervisor:
    """The process that looks after a container; when it is gone, so should be the container."""

    host: str
    """Where its id means something: the host, and the process namespace there."""
    pid: int
    start: str
    """As `processes.start_of` tells it."""

    @classmethod
    def this(cls) -> Supervisor:
        """The process that asks."""
        return cls(_process_space(), os.getpid(), start_of(os.getpid()) or "")

    @classmethod
    def parse(cls, label: str) -> Supervisor | None:
        """Of a label's text, None when it is none."""
        try:
            host, pid, start = label.split(" ")
            return cls(host, int(pid), start)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.start}"

    def is_gone(self) -> bool:
        """Whether it ended; what another host supervises cannot be told from here and counts as there."""
        return self.host == _process_space() and not lives(self.pid, self.start)


@dataclass(frozen=True)
class ContainerSpec:
    """All an engine is told."""

    image: str
    command: list[str]
    environment: dict[str, str]
    mounts: list[Mount]
    user: str
    labels: dict[str, str]
    limits: ContainerLimits
    devices: bool = False
    """Whether it sees the host's accelerators; which of them it uses, its lease says."""
    entrypoint: list[str] | None = None

    def host_config(self) -> dict[str, Any]:
        """Arguments of the SDK's `create_host_config`."""
        from docker import types

        return {
            "mounts": [
                types.Mount(str(mount.path), str(mount.path), type="bind", read_only=not mount.writable)
                for mount in self.mounts
            ],
            # What a step needs from the network was fetched before it started.
            "network_mode": "none",
            "read_only": True,
            "tmpfs": {_TMP: f"rw,nosuid,nodev,mode=1777,size={_TMP_BYTES}"},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": MAX_PROCESSES,
            "mem_limit": self.limits.memory_bytes,
            "memswap_limit": self.limits.memory_bytes,
            "shm_size": self.limits.shm_bytes,
            "ulimits": [types.Ulimit(name="core", soft=0, hard=0)],
            "log_config": types.LogConfig(type="json-file", config={"max-size": "50m", "max-file": "1"}),
            "device_requests": [types.DeviceRequest(count=-1, capabilities=[["gpu"]])] if self.devices else None,
        }


def step_container(
    run: RunDir,
    plan: CampaignPlan,
    step: StepPlan,
    settings: Settings,
    home: Home,
    *,
    limits: ContainerLimits,
    command: list[str],
    texts: Iterable[Path],
    threads: int,
    labels: Mapping[str, str],
) -> ContainerSpec:
    """The container of one step. Directories that it writes to are made here, for the owner of the run directory.

    Args:
        command: arguments of `evpack`.
        texts: files of the evaluation text, for a step that reads them.
        threads: threads each numeric library may use.
        labels: where the task stands in Airflow, without our prefix.

    Raises:
        BadInput: when what the step reads lies around or among the deployment's secrets.
        IntegrityError: when a link of an earlier container would lead a mount out of the run directory.
    """
    owner = run.root.stat()
    writable = [*published_places(run, plan, step, settings), run.archive / step.id]
    # Beside the variants stands what they all are compared with.
    kept = [run.model(step.model or "").baseline] if step.type is StepType.CREATE else []
    for path in [*writable, *kept]:
        if linked := run.first_link(path):
            raise IntegrityError(f"{linked}, where step {step.id} works, is a link", "remove it, then resume")
    for path in writable:
        make_for(owner, path)
    cache = hub_cache(settings, home)
    read = [run.root, cache, cache.resolve(), *source_places(plan, step, home), *texts]
    environment = step_environment({}, home=home, threads=threads, network=False) | {
        "HOME": _TMP,
        "TMPDIR": _TMP,
        "XDG_CACHE_HOME": f"{_TMP}/cache",
        "HF_MODULES_CACHE": f"{_TMP}/modules",
        IMAGE_ENV: limits.image,
    }
    if devices_of(plan, step):
        make_for(owner, home.leases)
        writable.append(home.leases)
        if pretended():
            environment[SIMULATED_ENV] = facts_source()
            read.append(Path(facts_source()))
    if step.type is StepType.SETUP_BASELINE and _converts(plan, step, home):
        make_for(owner, home.models)
        writable.append(home.models)  # where a conversion is kept for all campaigns
    mounts = [Mount(path) for path in read if path.exists() and not _built_in(path)]
    _keep_secrets(mounts, [home.keys, home.airflow, *([Path(settings.signing_key)] if settings.signing_key else [])])
    mounts += [*(Mount(path, True) for path in writable), *map(Mount, kept)]
    return ContainerSpec(
        image=limits.image,
        command=command,
        environment=environment,
        mounts=list({mount.path: mount for mount in mounts}.values()),
        user=f"{owner.st_uid}:{owner.st_gid}",
        labels=own_labels(home, {**labels, "run_dir": str(run.root), "step": step.id}),
        limits=limits,
        devices=bool(devices_of(plan, step)) and not pretended(),
    )


def own_labels(home: Home, more: Mapping[str, str]) -> dict[str, str]:
    """Labels that make a container ours and say whose it is."""
    labels = {**more, "home": str(home.root), "supervisor": str(Supervisor.this())}
    return {f"{LABEL}{key}": value for key, value in labels.items()}


def published_places(run: RunDir, plan: CampaignPlan, step: StepPlan, settings: Settings) -> list[Path]:
    """The directories that a step publishes into.

    A directory is published by a rename, so its parent has to be writable: variants of a model (which one step may make
    for all) and error reports of a model share theirs.
    """
    model = run.model(step.model or "")
    match step.type:
        case StepType.SETUP_BASELINE:
            return [model.root]
        case StepType.CALIBRATE:
            return [model.calibration]
        case StepType.DERIVE_PRESET:
            return [model.calibration, run.presets]
        case StepType.CREATE:
            return [model.baseline.parent]
        case StepType.EVALUATE:
            scenario = plan.scenario(step.scenario or "")
            reports = model.report(scenario.id, scenario.category, 1).parent
            return [reports, run.analysis] if settings.repeats and repeated_step(plan) == step else [reports]
        case other:
            raise BadInput(f"{other} runs in no container", "run it with `evpack step`")


def source_places(plan: CampaignPlan, step: StepPlan, home: Home) -> list[Path]:
    """Where the files of the step's model lie: the source itself, and what its files are links to.

    A baseline's links lead there too; they are not asked, since a container made them.
    """
    model = plan.model(step.model or "")
    places = [Path(model.source.path)] if model.source.path else []
    if model.source.format != "safetensors":
        places.append(converted_dir(home, model.id, model.source.revision or ""))
    linked = {file.resolve().parent for place in places if place.is_dir() for file in place.iterdir() if file.is_file()}
    return [*places, *sorted(linked.difference(places))]


def _keep_secrets(mounts: Iterable[Mount], secrets: Iterable[Path]) -> None:
    """Refuse to show a container the deployment's keys and passwords, because a model or a text lies around them."""
    for mount in mounts:
        for secret in secrets:
            place, hidden = mount.path.resolve(), secret.resolve()
            if hidden.is_relative_to(place) or place.is_relative_to(hidden):
                raise BadInput(
                    f"a container that reads {mount.path} would see {secret}",
                    f"keep models, texts and run directories apart from {secret}",
                )


def _converts(plan: CampaignPlan, step: StepPlan, home: Home) -> bool:
    """Whether the step has to make safetensors of a model that is stored as something else."""
    model = plan.model(step.model or "")
    return (
        model.source.format != "safetensors" and not converted_dir(home, model.id, model.source.revision or "").is_dir()
    )


def _built_in(path: Path) -> bool:
    directory = os.environ.get(BUILT_IN_ENV, "")
    return bool(directory) and path.is_relative_to(directory)


def _process_space() -> str:
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.readlink()}" if namespace.is_symlink() else socket.gethostname()


def pretended() -> bool:
    """Whether a file stands in for the accelerators of this host."""
    return facts_source() != "nvml"


def make_for(owner: os.stat_result, path: Path) -> None:
    """Make a directory, with its missing parents, for the owner of another one."""
    missing = [part for part in (path, *path.parents) if not part.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for part in missing:
        os.chown(part, owner.st_uid, owner.st_gid)


def _gigabytes(environ: Mapping[str, str], name: str, default: float) -> int:
    text = environ.get(name, "").strip()
    try:
        value = float(text) * 1e9 if text else default
    except ValueError:
        value = 0.0
    if not 4e6 <= value < 1e18:  # the engine's own lower bound is 4 MB
        raise BadInput(f"{name}={text!r} is no size", "give gigabytes, 8 or 0.5")
    return int(value)

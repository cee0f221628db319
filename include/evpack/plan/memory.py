"""How many devices a model needs (scheduling spec, section 4).

Scoring is teacher-forced: no key-value cache is kept, so what comes on top of the weights is the logits of one batch.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import BadInput, EvidenceError
from evpack.files import GB, read_json
from evpack.home import Home
from evpack.plan.health import health_of
from evpack.plan.lanes import DEVICE_COUNTS, MAX_MAP_LENGTH, lane_named
from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.plan.nvml import DeviceFacts, in_pool, read_devices, shared_with_user
from evpack.plan.order import priority
from evpack.settings import Settings

LOGIT_BYTES = 4
"""Logits are float32."""
LARGE_NAMES = ("70b", "72b", "65b", "mixtral", "8x7b", "moe")
"""Parts of model ids whose edits are made singly, and..."""
LARGE_GB = 170
"""... memory of a scoring step from which they are (scheduling spec, section 2)."""
SCORING = frozenset({StepType.CALIBRATE, StepType.EVALUATE})
"""The steps that compute on accelerators; edits stream on the CPU."""
NO_DEVICE_NAMES = frozenset({"-1", "NoDevFiles"})
"""What CUDA_VISIBLE_DEVICES holds where somebody, or a job scheduler, wants no device seen."""
PRESET_GB = 5.0
"""Planned for deriving a preset (scheduling spec, 4.2)."""
MEMORY_PLAN_COLUMNS = (
    *("task_id", "status", "task_type", "model_name", "model_id", "model_size_gb", "required_gpus", "adaptive_gpus"),
    *("assigned_gpus", "priority"),
)


@dataclass(frozen=True)
class Devices:
    """The accelerators a campaign may use."""

    count: int
    memory_gb: float = 0.0
    """Of the smallest one, GB."""


def scoring_gb(weights_gb: float, vocab: int, settings: Settings) -> float:
    """Memory of a scoring step, GB: weights + logits of one batch + overhead.

    logits = batch x seq_len x vocabulary x 4 bytes.
    """
    logits = settings.eval_batch * settings.seq_len * vocab * LOGIT_BYTES / GB
    return weights_gb + logits + max(settings.overhead_gb, settings.model_load_overhead_gb)


def devices_needed(model: str, weights_gb: float, vocab: int, devices: Devices, settings: Settings) -> int:
    """Accelerators for a model: 0 on a host without any, else 1, 2, 4 or 8.

    A step may use CUDA_MEMORY_FRACTION of each device.

    Raises:
        BadInput: when the model does not fit on all devices together.
    """
    if devices.count == 0:
        return 0
    need = scoring_gb(weights_gb, vocab, settings)
    usable = devices.memory_gb * settings.cuda_memory_fraction
    least = max(1, math.ceil(need / usable)) if usable > 0 else DEVICE_COUNTS[-1] + 1
    count = next((count for count in DEVICE_COUNTS if count >= least), least)
    if least <= devices.count < count <= DEVICE_COUNTS[-1]:
        raise BadInput(
            f"{model} does not fit: scoring needs {need:.1f} GB, {least} devices of {usable:.1f} GB each; lanes give "
            f"{', '.join(map(str, DEVICE_COUNTS[1:]))}, so it takes {count}, and there are {devices.count}",
            "lower INVARLOCK_EVAL_BATCH or INVARLOCK_SEQ_LEN, use a host with more devices, or leave the model out",
        )
    if count > min(devices.count, DEVICE_COUNTS[-1]):
        raise BadInput(
            f"{model} does not fit: scoring needs {need:.1f} GB, {devices.count} devices give {usable:.1f} GB each",
            "lower INVARLOCK_EVAL_BATCH or INVARLOCK_SEQ_LEN, raise NUM_GPUS, or leave the model out",
        )
    return count


def edits_share_a_pass(
    model: str, weights_gb: float, vocab: int, edits: int, settings: Settings, cpu_slots: int = 0, devices: int = 0
) -> bool:
    """Whether one pass makes all edits of a model: as PACK_USE_BATCH_EDITS says, else where only processors compute.

    Made singly, each can be evaluated as soon as it is there, so no device waits for the last of them; a large model's
    are the slowest to make, and where the host has a core for each they run side by side (docs/scheduling.md).

    Args:
        edits: how many there are to make.
        cpu_slots: steps that may run side by side on the processor, 0 when that is not known.
        devices: accelerators that score the model.
    """
    if settings.use_batch_edits is not None:
        return settings.use_batch_edits
    if devices or edits < 2 or edits <= cpu_slots:
        return False
    large = any(part in model.lower() for part in LARGE_NAMES)
    return not large and scoring_gb(weights_gb, vocab, settings) < LARGE_GB


def found_devices(settings: Settings) -> tuple[list[DeviceFacts], list[DeviceFacts]]:
    """The accelerators of this host, and those of them that the settings admit (`nvml.in_pool`); none without a driver.

    Raises:
        BadInput: when a host with devices has none of those that are named.
        Transient: when the driver does not answer.
    """
    named = settings.cuda_visible_devices is not None
    names = settings.cuda_visible_devices if named else settings.gpu_id_list
    if settings.num_gpus == 0 or names == ():
        return [], []
    found = read_devices()
    admitted = in_pool(found, settings)
    if names and found and not admitted and not NO_DEVICE_NAMES.issuperset(names):
        raise BadInput(
            f"{'CUDA_VISIBLE_DEVICES' if named else 'GPU_ID_LIST'}={','.join(names)} names none of this host's "
            f"{len(found)} devices",
            f"give numbers from 0 to {len(found) - 1} or beginnings of UUIDs (parts of a device, as MIG makes them, "
            "cannot be leased), or NUM_GPUS=0 for the CPU",
        )
    return found, admitted


def host_devices(settings: Settings, home: Home) -> Devices:
    """The accelerators of this host to plan for: those that the settings admit and steps may get now.

    Raises:
        BadInput: as `found_devices`, and when none may serve: a large model would run on the CPU unasked.
        Transient: when the driver does not answer.
    """
    found, admitted = found_devices(settings)
    if not admitted:
        return Devices(0)
    least_gb = least_free_gb(settings, len(found))
    refused = {device.uuid: _out_of_service(device, home, least_gb) for device in admitted}
    pool = [device for device in admitted if refused[device.uuid] is None]
    if not pool:
        raise BadInput(
            "no device can serve: " + "; ".join(f"{uuid}: {why}" for uuid, why in refused.items()),
            "release mended ones (`evpack devices`), lower GPU_MIN_FREE_GB, or give NUM_GPUS=0 for the CPU",
        )
    smallest = min(device.memory_gb for device in pool)
    return Devices(len(pool), settings.gpu_memory_per_device or settings.gpu_memory_gb or smallest)


def least_free_gb(settings: Settings, devices: int) -> float:
    """Memory, GB, that a device must have free whatever a step needs: GPU_MIN_FREE_GB where the host serves many.

    Args:
        devices: that the host has.
    """
    return 0.0 if shared_with_user(settings, devices) else settings.gpu_min_free_gb


def _out_of_service(device: DeviceFacts, home: Home, least_gb: float) -> str | None:
    """Why no step can ever get a device as it is; None when one may."""
    if why := health_of(home, device.uuid).quarantined:
        return f"quarantined ({why})"
    if device.fault is None and device.memory_gb < least_gb:
        return f"{device.memory_gb:.1f} GB in all, GPU_MIN_FREE_GB={least_gb:g}"
    return device.fault


def devices_of(plan: CampaignPlan, step: StepPlan) -> int:
    """Accelerators that a step computes on; 0 for all that do not score a model."""
    return plan.model(step.model).devices if step.model and step.type in SCORING else 0


def step_gb(plan: CampaignPlan, step: StepPlan, settings: Settings) -> float:
    """Memory of a step for planning, GB (scheduling spec, 4.2, with logits in the place of a cache).

    Edits stream, so their figure is an upper bound that nothing waits for.
    """
    if step.model is None:
        return 0.0
    model = plan.model(step.model)
    if step.type in SCORING:
        return model.scoring_gb
    if step.type is StepType.SETUP_BASELINE:
        return model.weights_gb + settings.model_load_overhead_gb
    if step.type is StepType.DERIVE_PRESET:
        return PRESET_GB
    if model.batch_edits and step.edit is not None:
        return 2 * model.weights_gb + settings.batch_edit_overhead_gb
    return model.weights_gb + settings.edit_overhead_gb


def slots_made(pools: Path) -> dict[str, int] | None:
    """Slots by pool as `evpack airflow setup` made them, None in a deployment without.

    Raises:
        BadInput: when the file is not what that wrote.
    """
    mend = "run `evpack airflow setup`, which writes it anew"
    if not pools.is_file():
        return None
    try:
        slots = read_json(pools)
    except EvidenceError as error:
        raise BadInput(error.what, mend) from error
    if not isinstance(slots, dict) or any(type(count) is not int or count < 0 for count in slots.values()):
        raise BadInput(f"{pools} does not give a number of slots by pool", mend)
    return slots


def memory_plan(plan: CampaignPlan, settings: Settings) -> str:
    """analysis/memory_plan.csv: one line per step of a model, with the reference's columns.

    `priority` is the weight in Airflow. `adaptive_gpus` stays empty: a step never runs on fewer devices than planned;
    so does `assigned_gpus`: devices are chosen when the step starts (attempt records name them).
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(MEMORY_PLAN_COLUMNS)
    places: Counter[tuple[StepType, str | None]] = Counter()
    for step in plan.steps:
        if step.model is None:
            continue
        model = plan.model(step.model)
        category = plan.scenario(step.scenario).category if step.scenario else None
        weight = priority(step.type, step.lane, places[step.type, step.lane], settings.order)
        places[step.type, step.lane] += 1
        table.writerow(
            (
                step.id,
                "planned",
                step.type.reference_name(category, batch=model.batch_edits),
                *(model.name, model.id),
                math.ceil(step_gb(plan, step, settings)),
                *(devices_of(plan, step), "", ""),
                weight,
            )
        )
    return text.getvalue()


def check_lanes(plan: CampaignPlan, pools: Path, longest: int | None = None) -> None:
    """Refuse what Airflow would let wait forever or fail on.

    Args:
        pools: what `evpack airflow setup` made; a deployment without it is not checked.
        longest: list that the Airflow at hand expands; the documented `MAX_MAP_LENGTH` when None.

    Raises:
        BadInput: a lane's steps take more slots than their pool has, or a list is longer than one may be expanded.
    """
    slots = slots_made(pools)
    used = dict.fromkeys(step.lane for step in plan.steps if step.lane)
    for lane in filter(None, map(lane_named, used)):
        for pool, needed in ((lane.pool, lane.pool_slots), (lane.cpu_pool, 1)):
            if slots is not None and (made := slots.get(pool, 0)) < needed:
                raise BadInput(
                    f"steps of lane {lane.id} take {needed} slots of pool {pool}, which has {made} ({pools})",
                    "run `evpack airflow setup` where the devices are, or plan for fewer with NUM_GPUS",
                )
        cells, most = len(plan.steps_of(StepType.CREATE, lane=lane.id)), longest or MAX_MAP_LENGTH
        if cells > most:
            raise BadInput(
                f"lane {lane.id} has {cells} cells, more than the {most} that one list may have",
                "split the models or the scenarios over several campaigns"
                + (f", or set [core] max_map_length to {MAX_MAP_LENGTH}" if most < MAX_MAP_LENGTH else ""),
            )

"""The settings that say where and how a campaign runs: devices, time limits, retries (`evpack.settings`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from evpack.settings_types import ENGINE, PLAN, Count, Gigabytes, Items, Limit, Positive, Seconds, Var, auto, timeouts

HARDWARE, WORKERS = "Hardware", "Workers and reliability"

_POOLS = "pools and pool_slots decide when a step starts"

MOST_RETRIES = 20
"""Largest MAX_RETRIES: the ceiling that every task has in Airflow, where it cannot be set per campaign."""


class DeploymentSettings(BaseModel):
    """Where and how a campaign runs; set where Airflow runs, not in the trigger form."""

    # --- hardware
    cuda_visible_devices: Annotated[
        Items | None,
        Var(HARDWARE, "CUDA_VISIBLE_DEVICES", "Device pool, ids; empty: none.", PLAN, empty_counts=True),
    ] = None
    gpu_id_list: Annotated[
        Items | None, Var(HARDWARE, "GPU_ID_LIST", "Device pool when CUDA_VISIBLE_DEVICES is unset.", PLAN)
    ] = None
    num_gpus: Annotated[
        Annotated[Count | None, BeforeValidator(auto)],
        Var(HARDWARE, "NUM_GPUS", "Devices to use at most; auto takes the whole pool, 0 runs on the CPU.", PLAN),
    ] = None
    gpu_memory_gb: Annotated[
        Annotated[Gigabytes | None, BeforeValidator(auto)],
        Var(HARDWARE, "GPU_MEMORY_GB", "Memory of a device for planning; auto takes the smallest found.", PLAN),
    ] = None
    gpu_memory_per_device: Annotated[
        Annotated[Gigabytes | None, BeforeValidator(auto)],
        Var(HARDWARE, "GPU_MEMORY_PER_DEVICE", "The same, stronger than GPU_MEMORY_GB.", PLAN),
    ] = None
    gpu_min_free_gb: Annotated[
        Gigabytes, Var(HARDWARE, "GPU_MIN_FREE_GB", "Free memory a device must have.", ENGINE)
    ] = 10
    gpu_require_idle: Annotated[
        bool, Var(HARDWARE, "GPU_REQUIRE_IDLE", "Only devices without compute processes.", ENGINE)
    ] = True
    gpu_cache_ttl: Annotated[Seconds, Var(HARDWARE, "GPU_CACHE_TTL", "Age of cached device facts, s.", ENGINE)] = 5
    lease_wait: Annotated[
        Seconds, Var(HARDWARE, "LEASE_WAIT", "Wait of a step for its devices, s; then it is tried later.", ENGINE)
    ] = 900
    gpu_reservation_ttl: Annotated[
        Seconds, Var(HARDWARE, "GPU_RESERVATION_TTL", "Life of a device reservation, s.", airflow=_POOLS)
    ] = 60
    gpu_reservation_lock_timeout: Annotated[
        Seconds, Var(HARDWARE, "GPU_RESERVATION_LOCK_TIMEOUT", "Wait for the reservation lock, s.", airflow=_POOLS)
    ] = 5

    # --- workers and reliability
    worker_heartbeat_interval: Annotated[
        Seconds, Var(WORKERS, "WORKER_HEARTBEAT_INTERVAL", "Seconds.", airflow="[workers] min_heartbeat_interval")
    ] = 30
    worker_idle_sleep: Annotated[
        Seconds, Var(WORKERS, "WORKER_IDLE_SLEEP", "Seconds.", airflow="[scheduler] scheduler_idle_sleep_time")
    ] = 5
    worker_max_failures: Annotated[
        Positive,
        Var(WORKERS, "WORKER_MAX_FAILURES", "Failures in a row after which a device is quarantined.", ENGINE),
    ] = 10
    worker_timeout: Annotated[
        Seconds,
        Var(WORKERS, "WORKER_TIMEOUT", "Seconds.", airflow="[scheduler] task_instance_heartbeat_timeout"),
    ] = 2700
    cancel_blocked_tasks_grace_seconds: Annotated[
        Seconds,
        Var(
            WORKERS, "CANCEL_BLOCKED_TASKS_GRACE_SECONDS", "Seconds.", airflow="trigger rules; a blocked step exits 14"
        ),
    ] = 90
    task_timeout_default: Annotated[
        Limit,
        Var(
            WORKERS, "TASK_TIMEOUT_DEFAULT", "Limit of a step, s; empty, 0, none: no limit.", "steps", empty_counts=True
        ),
    ] = 21600
    task_timeouts: Annotated[
        Annotated[dict[str, Limit], BeforeValidator(timeouts)],
        Var(WORKERS, "TASK_TIMEOUT_<TASKTYPE>", "Limit of one type of step, s; empty, 0, none: no limit.", "steps"),
    ] = {}
    max_retries: Annotated[
        Annotated[Count, Field(le=MOST_RETRIES)],
        Var(WORKERS, "MAX_RETRIES", f"Tries of a step after the first, at most {MOST_RETRIES}.", "steps"),
    ] = 3
    retry_backoff_base: Annotated[
        Seconds,
        Var(WORKERS, "RETRY_BACKOFF_BASE", "Pause before the first retry, s; doubles with each, +/- 20 %.", "steps"),
    ] = 30
    retry_backoff_max: Annotated[
        Seconds, Var(WORKERS, "RETRY_BACKOFF_MAX", "Longest pause before a retry, s.", "steps")
    ] = 300
    reschedule_pause: Annotated[
        Seconds,
        Var(
            *(WORKERS, "RESCHEDULE_PAUSE", "Pause of a task that got no device or no room, s; at least 15."),
            "steps",
        ),
    ] = 60

"""Everything an operator can set, in one frozen model.

`settings_resolve.resolve` makes it once, when a campaign is planned. It is frozen into state/settings.json; no
later step looks at PACK_* or INVARLOCK_* variables again. A field is named after its variable: lower case, without the
PACK_ or INVARLOCK_ prefix. docs/tuning.md is generated from the metadata below (`evpack.settings_docs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from evpack.errors import EvidenceError
from evpack.files import digest_json, parse_json, portable
from evpack.settings_types import (
    Count,
    DatasetName,
    FilePath,
    Gigabytes,
    Items,
    Limit,
    Paths,
    Positive,
    Seconds,
    Var,
    Whole,
    auto,
    key_path,
    layout_name,
    no_bool,
    timeouts,
)

__all__ = ["Settings", "Var", "variables"]


# Where settings act; the words of docs/tuning.md.
PLAN = "plan"
ENGINE = "calibrate, evaluate"
DATA = "plan, setup_baseline"
PACK = "build_pack"

CORE, HARDWARE, MODELS, TEXT, EDITS = "Core", "Hardware", "Models", "Evaluation", "Edits and presets"
RUNS, STORAGE, WORKERS, PACKING = "Experiment", "Storage and memory", "Workers and reliability", "Pack"

_POOLS = "pools and pool_slots decide when a step starts"
_PROVIDER = "its kind and arguments replace every other setting of the text."
_MODEL = "Model of this slot: hub id, directory or .gguf file. Empty disables the slot of the suite."

MOST_RETRIES = 20
"""Largest MAX_RETRIES: the ceiling that every task has in Airflow, where it cannot be set per campaign."""


class Settings(BaseModel):
    """The settings of one campaign. Defaults are the reference's; a suite may bring its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    # --- core
    suite: Annotated[str, Var(CORE, "PACK_SUITE", "Name of the suite (`evpack suites` lists them).", PLAN)] = "subset"
    net: Annotated[bool, Var(CORE, "PACK_NET", "Allow the network; 0 works offline from pinned snapshots.", "all")] = (
        False
    )
    output_dir: Annotated[
        FilePath | None,
        Var(CORE, ("PACK_OUTPUT_DIR", "OUTPUT_DIR"), "Run directory; else one below EVPACK_HOME.", PLAN),
    ] = None
    output_dir_absolute: Annotated[
        bool, Var(CORE, "PACK_OUTPUT_DIR_ABSOLUTE", "Kept for compatibility: the run directory is always absolute.")
    ] = False
    suite_mode: Annotated[
        Literal["full", "calibrate-only", "run-only"],
        Var(CORE, "PACK_SUITE_MODE", "Which part runs now: all, presets only, or what follows on presets.", PLAN),
    ] = "full"
    determinism: Annotated[
        Literal["throughput", "strict"],
        Var(CORE, "PACK_DETERMINISM", "`strict` turns on deterministic kernels and turns TF32 off.", ENGINE),
    ] = "throughput"
    repeats: Annotated[
        Count, Var(CORE, "PACK_REPEATS", "Repeats of one edit's evaluation, compared by digest.", "plan, evaluate")
    ] = 0
    model_revisions_file: Annotated[
        FilePath | None,
        Var(CORE, "PACK_MODEL_REVISIONS_FILE", "Pinned revisions; else model_revisions.json in EVPACK_HOME.", PLAN),
    ] = None
    use_batch_edits: Annotated[
        Annotated[bool | None, BeforeValidator(auto)],
        Var(
            CORE,
            "PACK_USE_BATCH_EDITS",
            "Make all edits of a model in one pass (true) or singly (false); auto: one pass unless the model is large.",
            PLAN,
        ),
    ] = None
    resume_mode: Annotated[
        bool,
        Var(CORE, "RESUME_MODE", "Continue a run directory that holds a plan; false refuses such a directory.", PLAN),
    ] = True
    resume: Annotated[
        FilePath | None, Var(CORE, "PACK_RESUME", "Run directory of a planned campaign to continue.", PLAN)
    ] = None
    profile: Annotated[
        Literal["dev", "ci", "ci_cpu", "release", "small"],
        Var(CORE, "PACK_PROFILE", "Policy profile: floors on windows and tokens, evidence level.", "plan, verdict"),
    ] = "ci"
    order: Annotated[
        Literal["small_first", "large_first"],
        Var(CORE, "PACK_ORDER", "Order of the models, within a lane and across lanes.", PLAN),
    ] = "small_first"
    scenarios: Annotated[
        Items | None, Var(CORE, "PACK_SCENARIOS", "A manifest file, or the ids of the suite's scenarios to keep.", PLAN)
    ] = None

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

    # --- models
    models: Annotated[
        Items | None,
        Var(MODELS, "PACK_MODELS", "Models in place of the suite's: hub ids, directories, .gguf files.", PLAN),
    ] = None
    model_1: Annotated[str | None, Var(MODELS, "MODEL_1", _MODEL, PLAN, empty_counts=True)] = None
    model_2: Annotated[str | None, Var(MODELS, "MODEL_2", _MODEL, PLAN, empty_counts=True)] = None
    model_3: Annotated[str | None, Var(MODELS, "MODEL_3", _MODEL, PLAN, empty_counts=True)] = None
    model_4: Annotated[str | None, Var(MODELS, "MODEL_4", _MODEL, PLAN, empty_counts=True)] = None
    model_5: Annotated[str | None, Var(MODELS, "MODEL_5", _MODEL, PLAN, empty_counts=True)] = None
    model_6: Annotated[str | None, Var(MODELS, "MODEL_6", _MODEL, PLAN, empty_counts=True)] = None
    model_7: Annotated[str | None, Var(MODELS, "MODEL_7", _MODEL, PLAN, empty_counts=True)] = None
    model_8: Annotated[str | None, Var(MODELS, "MODEL_8", _MODEL, PLAN, empty_counts=True)] = None
    convert_pickle: Annotated[
        bool,
        Var(
            *(MODELS, "PACK_CONVERT_PICKLE", "Convert a checkpoint that has no safetensors from its pickles."),
            "plan, setup_baseline",
        ),
    ] = False
    allow_remote_code: Annotated[
        bool,
        Var(
            *(MODELS, "INVARLOCK_ALLOW_REMOTE_CODE", "Run the code of a tokenizer that brings some; models never do."),
            "plan, setup_baseline",
        ),
    ] = False
    skip_flash_attn: Annotated[bool, Var(MODELS, "SKIP_FLASH_ATTN", "Do not use flash attention.", ENGINE)] = False
    hf_home: Annotated[
        FilePath | None, Var(MODELS, "HF_HOME", "Hugging Face caches; else hf/ in EVPACK_HOME.", "plan, setup_baseline")
    ] = None
    hf_hub_cache: Annotated[
        FilePath | None, Var(MODELS, "HF_HUB_CACHE", "Model snapshots; else hub/ in HF_HOME.", "plan, setup_baseline")
    ] = None
    hf_datasets_cache: Annotated[
        FilePath | None, Var(MODELS, "HF_DATASETS_CACHE", "Prepared datasets; else datasets/ in HF_HOME.", DATA)
    ] = None
    transformers_cache: Annotated[
        FilePath | None, Var(MODELS, "TRANSFORMERS_CACHE", "Older name of a cache directory.")
    ] = None

    # --- evaluation
    dataset: Annotated[
        Literal["wikitext2", "hf_text", "local_jsonl", "text", "synthetic", "seq2seq"],
        Var(TEXT, "INVARLOCK_DATASET", "Provider of the evaluation text; not yet `synthetic`, `seq2seq`.", DATA),
    ] = "wikitext2"
    text_path: Annotated[
        FilePath | None, Var(TEXT, "PACK_TEXT_PATH", "A .txt file or a directory of them, for provider `text`.", DATA)
    ] = None
    dataset_provider_yaml: Annotated[
        str | None, Var(TEXT, "INVARLOCK_DATASET_PROVIDER_YAML", f"Provider as YAML mapping; {_PROVIDER}", PLAN)
    ] = None
    dataset_provider_json: Annotated[
        str | None, Var(TEXT, "INVARLOCK_DATASET_PROVIDER_JSON", f"Provider as JSON object; {_PROVIDER}", PLAN)
    ] = None
    hf_dataset_name: Annotated[
        DatasetName, Var(TEXT, "INVARLOCK_HF_DATASET_NAME", "Dataset of provider `hf_text`, or its directory.", DATA)
    ] = "allenai/c4"
    hf_config_name: Annotated[str, Var(TEXT, "INVARLOCK_HF_CONFIG_NAME", "Its configuration.", DATA)] = "en"
    hf_split: Annotated[str, Var(TEXT, "PACK_HF_SPLIT", "Its split.", DATA)] = "validation"
    hf_text_field: Annotated[str, Var(TEXT, "INVARLOCK_HF_TEXT_FIELD", "Its text field.", DATA)] = "text"
    hf_max_samples: Annotated[Positive, Var(TEXT, "INVARLOCK_HF_MAX_SAMPLES", "Rows taken at most.", DATA)] = 2000
    hf_trust_remote_code: Annotated[
        bool, Var(TEXT, "INVARLOCK_HF_TRUST_REMOTE_CODE", "Refused when true: no code of others is run.", PLAN)
    ] = False
    hf_cache_dir: Annotated[
        FilePath | None,
        Var(TEXT, "INVARLOCK_HF_CACHE_DIR", "Prepared datasets; stronger than HF_DATASETS_CACHE.", DATA),
    ] = None
    local_jsonl_file: Annotated[
        FilePath | None, Var(TEXT, "INVARLOCK_LOCAL_JSONL_FILE", "File of provider `local_jsonl`.", DATA)
    ] = None
    local_jsonl_path: Annotated[
        FilePath | None, Var(TEXT, "INVARLOCK_LOCAL_JSONL_PATH", "File or directory of it.", DATA)
    ] = None
    local_jsonl_data_files: Annotated[
        Paths | None, Var(TEXT, "INVARLOCK_LOCAL_JSONL_DATA_FILES", "Globs or list of its files.", DATA)
    ] = None
    local_jsonl_text_field: Annotated[
        str, Var(TEXT, "INVARLOCK_LOCAL_JSONL_TEXT_FIELD", "Text field of provider `local_jsonl`.", DATA)
    ] = "text"
    local_jsonl_max_samples: Annotated[
        Positive, Var(TEXT, "INVARLOCK_LOCAL_JSONL_MAX_SAMPLES", "Rows taken at most.", DATA)
    ] = 2000
    tier: Annotated[
        Literal["conservative", "balanced", "aggressive"],
        Var(TEXT, "INVARLOCK_TIER", "Strictness of the guards and gates.", "plan, evaluate, verdict"),
    ] = "balanced"
    preview_windows: Annotated[
        Positive, Var(TEXT, "INVARLOCK_PREVIEW_WINDOWS", "Preview windows per run, raised to tier and profile.", DATA)
    ] = 32
    final_windows: Annotated[
        Positive, Var(TEXT, "INVARLOCK_FINAL_WINDOWS", "Final windows per run, likewise.", DATA)
    ] = 32
    seq_len: Annotated[Annotated[Whole, Field(ge=2)], Var(TEXT, "INVARLOCK_SEQ_LEN", "Tokens per window.", DATA)] = 512
    stride: Annotated[
        Positive, Var(TEXT, "INVARLOCK_STRIDE", "Tokens from window to window; evaluation uses seq_len.", DATA)
    ] = 256
    eval_batch: Annotated[
        Positive, Var(TEXT, "INVARLOCK_EVAL_BATCH", "Windows per forward pass.", "plan, calibrate, evaluate")
    ] = 32
    config_file: Annotated[
        FilePath | None,
        Var(TEXT, "PACK_CONFIG_FILE", "YAML with limits: of primary_metric and of guards (docs/guards.md).", PLAN),
    ] = None
    config_root: Annotated[
        FilePath | None,
        Var(TEXT, "INVARLOCK_CONFIG_ROOT", "The same by profile: runtime/profiles/<profile>.yaml below it.", PLAN),
    ] = None
    allow_config_include_outside: Annotated[
        bool,
        Var(
            TEXT, "INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE", "Let `!include` leave the configuration's directory.", PLAN
        ),
    ] = False
    accuracy: Annotated[
        bool, Var(TEXT, "PACK_ACCURACY", "Gate on next-token accuracy beside perplexity.", "calibrate, evaluate")
    ] = False
    guards_order: Annotated[
        Items, Var(TEXT, "PACK_GUARDS_ORDER", "Guards in the order they run.", "plan, evaluate, verdict")
    ] = ("invariants", "spectral", "rmt", "variance", "invariants")

    # --- edits and presets
    tuned_edit_params_file: Annotated[
        FilePath | None,
        Var(EDITS, "PACK_TUNED_EDIT_PARAMS_FILE", "Tuned parameters of clean edits; else the shipped file.", PLAN),
    ] = None
    calibration_preset_dir: Annotated[
        FilePath | None,
        Var(EDITS, "PACK_CALIBRATION_PRESET_DIR", "Presets to reuse, by model, in place of calibration runs.", PLAN),
    ] = None
    calibration_preset_file: Annotated[
        FilePath | None,
        Var(EDITS, "PACK_CALIBRATION_PRESET_FILE", "One preset to reuse; stronger than the directory.", PLAN),
    ] = None

    # --- experiment
    drift_calibration_runs: Annotated[
        Count, Var(RUNS, "DRIFT_CALIBRATION_RUNS", "Calibration runs per model.", "plan, calibrate")
    ] = 5
    clean_edit_runs: Annotated[
        Count, Var(RUNS, "CLEAN_EDIT_RUNS", "Evaluation runs per clean scenario; 0 leaves them out.", "plan, evaluate")
    ] = 3
    stress_edit_runs: Annotated[
        Count,
        Var(RUNS, "STRESS_EDIT_RUNS", "Evaluation runs per stress scenario; 0 leaves them out.", "plan, evaluate"),
    ] = 2
    run_error_injection: Annotated[
        bool, Var(RUNS, "RUN_ERROR_INJECTION", "Whether error scenarios are part of the campaign.", PLAN)
    ] = True

    # --- storage and memory
    baseline_storage_mode: Annotated[
        Literal["snapshot_symlink", "snapshot_copy", "save_pretrained"],
        Var(STORAGE, "PACK_BASELINE_STORAGE_MODE", "How a baseline enters the run directory.", "plan, setup_baseline"),
    ] = "snapshot_symlink"
    variant_storage: Annotated[
        Literal["delta", "full"],
        Var(STORAGE, "PACK_VARIANT_STORAGE", "Variants as what changed, or as whole checkpoints.", "plan, create"),
    ] = "delta"
    keep_variants: Annotated[
        bool,
        Var(STORAGE, "PACK_KEEP_VARIANTS", "Keep a variant's weights after its last evaluation.", "plan, evaluate"),
    ] = False
    variant_budget_gb: Annotated[
        Annotated[Gigabytes | None, BeforeValidator(auto)],
        Var(
            *(STORAGE, "PACK_VARIANT_BUDGET_GB", "Space of all variants at one time, GB; auto: what the disk allows."),
            "plan, create, evaluate",
        ),
    ] = None
    min_free_disk_gb: Annotated[
        Gigabytes,
        Var(STORAGE, "MIN_FREE_DISK_GB", "Space that must stay free beside what is written, GB.", "plan, steps"),
    ] = 200
    skip_disk_preflight: Annotated[
        bool, Var(STORAGE, "PACK_SKIP_DISK_PREFLIGHT", "Plan and run without looking at the free space.", "plan, steps")
    ] = False
    cuda_memory_fraction: Annotated[
        Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=1)],
        Var(STORAGE, "CUDA_MEMORY_FRACTION", "Part of a device's memory that steps may use.", f"{PLAN}, {ENGINE}"),
    ] = 0.92
    model_load_overhead_gb: Annotated[
        Gigabytes, Var(STORAGE, "MODEL_LOAD_OVERHEAD_GB", "Planned on top of the weights to load, GB.", PLAN)
    ] = 4
    edit_overhead_gb: Annotated[
        Gigabytes, Var(STORAGE, "EDIT_OVERHEAD_GB", "Planned on top of the weights for an edit, GB.", PLAN)
    ] = 8
    batch_edit_overhead_gb: Annotated[
        Gigabytes, Var(STORAGE, "BATCH_EDIT_OVERHEAD_GB", "The same for all edits in one pass, GB.", PLAN)
    ] = 8
    overhead_gb: Annotated[
        Gigabytes, Var(STORAGE, "INVARLOCK_OVERHEAD_GB", "Planned on top of weights and logits to score, GB.", PLAN)
    ] = 6

    # --- workers and reliability
    worker_heartbeat_interval: Annotated[
        Seconds, Var(WORKERS, "WORKER_HEARTBEAT_INTERVAL", "Seconds.", airflow="[scheduler] job_heartbeat_sec")
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
            *(WORKERS, "RESCHEDULE_PAUSE", "Pause of a task that got no device or no room for a variant, s."),
            "steps",
        ),
    ] = 60

    # --- pack
    build_pack: Annotated[
        bool,
        Var(PACKING, "PACK_BUILD", "Seal the evidence; else the verdict alone counts.", "build_pack, verify_pack"),
    ] = True
    pack_dir: Annotated[
        FilePath | None,
        Var(PACKING, "PACK_DIR", "Where the pack goes; else evidence_pack/ in the run directory.", PACK),
    ] = None
    layout: Annotated[
        Annotated[Literal["v1", "v2"], BeforeValidator(layout_name)],
        Var(PACKING, "PACK_LAYOUT", "Layout of the pack: v1 (flat, legacy) or v2 (enhanced).", PACK),
    ] = "v1"
    sign_manifest: Annotated[bool, Var(PACKING, "PACK_SIGN_MANIFEST", "Sign the manifest (Ed25519).", PACK)] = True
    signing_key: Annotated[
        Annotated[FilePath | None, BeforeValidator(key_path)],
        Var(
            *(PACKING, "PACK_SIGNING_KEY", "Path of a private key (PEM); else the deployment's own key.", PACK),
            secret=True,
        ),
    ] = None
    skip_html: Annotated[bool, Var(PACKING, "PACK_SKIP_HTML", "Leave out the HTML pages.", PACK)] = False
    verify_profile: Annotated[
        Literal["dev", "ci", "ci_cpu", "release", "small"],
        Var(
            *(PACKING, "PACK_VERIFY_PROFILE", "What reports must meet to be packed: ci metric, release guards.", PACK),
        ),
    ] = "dev"

    def timeout_for(self, task_type: str) -> int | None:
        """Execution limit in seconds of a task type (`StepType.reference_name`), None for no limit."""
        return self.task_timeouts.get(task_type.upper(), self.task_timeout_default)

    @property
    def reuses_presets(self) -> bool:
        """Whether presets of an earlier campaign take the place of calibration runs."""
        return self.calibration_preset_file is not None or self.calibration_preset_dir is not None

    @property
    def calibration_runs(self) -> int:
        """Calibration runs per model: DRIFT_CALIBRATION_RUNS, none where presets are reused."""
        return 0 if self.reuses_presets else self.drift_calibration_runs

    @property
    def scheduled_runs(self) -> int:
        """Runs that get windows; evaluation run k pairs with baseline run k, so the largest number counts."""
        return max(self.calibration_runs, self.clean_edit_runs, self.stress_edit_runs, 1)

    @property
    def model_slots(self) -> tuple[str | None, ...]:
        """MODEL_1 to MODEL_8: None keeps the suite's model, the empty string disables the slot."""
        return tuple(getattr(self, f"model_{slot}") for slot in range(1, 9))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value. Holds no secret: a key is only ever named by its path."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, directories of this machine left out (`files.portable`)."""
        return digest_json(portable(self.to_json()))

    @classmethod
    def parse(cls, data: bytes, name: str = "state/settings.json") -> Settings:
        """The settings frozen earlier by `to_json`.

        Raises:
            EvidenceError: when the document is not what `plan` wrote.
        """
        try:
            return cls.model_validate(parse_json(data, name))
        except ValidationError as error:
            raise EvidenceError(f"{name}: {error.error_count()} fields are not valid settings") from error


def variables() -> Iterator[tuple[str, Var, object]]:
    """Every setting as (field name, metadata, default), in the order of docs/tuning.md."""
    for name, info in Settings.model_fields.items():
        var = next(item for item in info.metadata if isinstance(item, Var))
        yield name, var, info.default

"""The settings that say what a campaign is: models, text, edits, runs, what is kept and packed (`evpack.settings`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from evpack.settings_types import (
    ENGINE,
    PLAN,
    Count,
    DatasetName,
    FilePath,
    Gigabytes,
    Items,
    Paths,
    Positive,
    Var,
    Whole,
    auto,
    key_path,
    layout_name,
    no_bool,
)

DATA = "plan, setup_baseline"
PACK = "build_pack"

CORE, MODELS, TEXT, EDITS = "Core", "Models", "Evaluation", "Edits and presets"
RUNS, STORAGE, PACKING = "Experiment", "Storage and memory", "Pack"

_PROVIDER = "its kind and arguments replace every other setting of the text."
_MODEL = "Model of this slot: hub id, directory or .gguf file. Empty disables the slot of the suite."


class CampaignSettings(BaseModel):
    """What a campaign is; the settings of the trigger form."""

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
            "All edits of a model in one pass (true) or singly (false); auto: singly on devices and for large models.",
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
        Positive,
        Var(TEXT, "INVARLOCK_STRIDE", "Tokens between windows; below seq_len, only the last of each are scored.", DATA),
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

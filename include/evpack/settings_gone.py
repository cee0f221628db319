"""Variables of the reference that are no settings here, and what took their place."""

from __future__ import annotations

GONE = {
    "SCHEDULER_LOCK_TIMEOUT": "Airflow's scheduler; devices are claimed under a lock that the kernel drops",
    "QUEUE_CLAIM_LOCK_TIMEOUT": "Airflow's scheduler; there is no queue of files",
    "SCHEDULER_MEM_TOLERANCE_GB": "exact sizes before planning, CUDA_MEMORY_FRACTION and the overheads",
    "INVARLOCK_ALLOW_NETWORK": "PACK_NET",
    "INVARLOCK_DEDUP_TEXTS": "always: a text that occurs twice is given once",
    "INVARLOCK_STORE_EVAL_WINDOWS": "always: the windows and the losses on each are kept and packed",
    "INVARLOCK_BOOTSTRAP_N": "the tier's policy, by which a verifier judges as well",
    "INVARLOCK_CERT_MIN_WINDOWS": "the floors of PACK_PROFILE",
    "INVARLOCK_SKIP_OVERHEAD_CHECK": "the profile: ci and release ask what guarding does to perplexity",
    "INVARLOCK_EXPORT_DIR": "PACK_OUTPUT_DIR and PACK_DIR",
    "PACK_SPECTRAL_MAX_CAPS": "`guards: {spectral: {max_caps: ...}}` in PACK_CONFIG_FILE (docs/decisions/0013)",
    "PACK_PRESET_EDIT_TYPES": "preset variants follow from the manifest (docs/decisions/0013)",
    "PACK_SKIP_TORCH_CHECK": "`make venv`",
    "REPO_DIR, REPO_URL, BRANCH, PYTHON_BIN, VENV_DIR": "`git clone` and `make venv`",
    "TORCH_INDEX_URL, TORCH_PACKAGES": "requirements.txt; for containers the wheels of the worker image",
}

"""What this version can do, as data for the planner; the rooms that do it sit above it and are tested against this."""

from __future__ import annotations

SUPPORTED_EDITS = frozenset({"quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"})
FAULT_TENSORS: dict[str, int | None] = {
    "nan_injection": 1,
    "inf_injection": 1,
    "extreme_quant": None,
    "shape_mismatch": 3,
    "missing_tensors": 0,
    "scale_explosion": 1,
    "rank_collapse": 8,
    "norm_collapse": 32,
    "weight_tying_break": 1,
    "rmt_norm_noise": 1,
    "spectral_moderate_scale": None,
    "ve_mlp_scale_skew": None,
}
"""Faults that can be injected; the number is how many of the largest tensor their variant takes at most (None: all)."""
SUPPORTED_FAULTS = frozenset(FAULT_TENSORS)
SUPPORTED_GUARDS = frozenset({"invariants", "spectral", "rmt", "variance"})
SUPPORTED_PROVIDERS = frozenset({"text", "local_jsonl", "wikitext2", "hf_text"})
SUPPORTED_STORAGE = frozenset({"snapshot_symlink", "snapshot_copy", "save_pretrained"})
RMT_PROBE = "rmt_probe.json"
VE_PROBE = "ve_probe.json"
PROBES = (RMT_PROBE, VE_PROBE)
"""Files beside a report in which a guard's question is asked once more."""
VALIDATION_FLAGS = frozenset(
    {
        "guard_overhead_acceptable",
        "hysteresis_applied",
        "invariants_pass",
        "moe_identity_ok",
        "moe_observed",
        "preview_final_drift_acceptable",
        "primary_metric_acceptable",
        "primary_metric_tail_acceptable",
        "rmt_stable",
        "spectral_stable",
    }
)
"""Flags that a report's `validation` may hold (its schema's allow-list)."""
METRIC_FLAGS = frozenset({"degraded", "detected_shift", "invalid", "unstable"})
"""Booleans of a report's `primary_metric`."""
GUARD_STATUSES = ("pass", "warn", "fail", "error")
"""What the `status` of a guard's block may be."""

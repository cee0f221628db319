"""What this version can do, as data for the planner; the rooms that do it sit above it and are tested against this."""

from __future__ import annotations

SUPPORTED_EDITS = frozenset({"quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"})
SUPPORTED_FAULTS = frozenset(
    {
        *("nan_injection", "inf_injection", "extreme_quant", "shape_mismatch", "missing_tensors", "scale_explosion"),
        *("rank_collapse", "norm_collapse", "weight_tying_break"),
        *("rmt_norm_noise", "spectral_moderate_scale", "ve_mlp_scale_skew"),
    }
)
SUPPORTED_GUARDS = frozenset({"invariants", "spectral", "rmt", "variance"})
SUPPORTED_PROVIDERS = frozenset({"text", "local_jsonl"})
SUPPORTED_STORAGE = frozenset({"snapshot_symlink", "snapshot_copy", "save_pretrained"})

ONE_TENSOR_FAULTS = frozenset(
    {"nan_injection", "inf_injection", "missing_tensors", "scale_explosion", "weight_tying_break", "rmt_norm_noise"}
)
"""Faults that store at most one matrix, or normalisation weights: their variant is no larger than the largest tensor."""

"""What this version can do, as data for the planner; the rooms that do it sit above it and are tested against this."""

from __future__ import annotations

SUPPORTED_EDITS = frozenset({"quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"})
SUPPORTED_FAULTS = frozenset({"nan_injection", "scale_explosion"})
SUPPORTED_GUARDS = frozenset({"invariants"})
SUPPORTED_PROVIDERS = frozenset({"text", "local_jsonl"})
SUPPORTED_STORAGE = frozenset({"snapshot_symlink", "snapshot_copy", "save_pretrained"})

ONE_TENSOR_FAULTS = frozenset({"nan_injection", "scale_explosion"})
"""Faults that change a single tensor, so that their variant is no larger than the largest one."""

"""Edits: functions of single tensors, streamed over a checkpoint into a variant. One file per edit."""

from evpack.edits.driver import SUPPORTED, PreparedEdit, apply_edit, apply_edits, kernel_for
from evpack.edits.kernel import Kernel

__all__ = ["SUPPORTED", "Kernel", "PreparedEdit", "apply_edit", "apply_edits", "kernel_for"]

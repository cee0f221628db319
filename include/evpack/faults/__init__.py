"""Injected faults: damage with a known place, which an evaluation must detect. One file per family."""

from evpack.faults.driver import SUPPORTED, apply_fault

__all__ = ["SUPPORTED", "apply_fault"]

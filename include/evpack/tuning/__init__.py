"""Finding the parameters of clean edits: a measured sweep per edit type, from strong to mild."""

from evpack.tuning.sweep import POOL_WINDOWS, Request, tune

__all__ = ["POOL_WINDOWS", "Request", "tune"]

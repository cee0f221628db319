"""Scheduled validation of edited language models: edit, evaluate, judge, seal, verify."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("evpack")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

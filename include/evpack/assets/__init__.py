"""Models and texts that come with the project: the tiny fixture (package data) and the demo (fetched once)."""

from evpack.assets.demo import demo_text, prepare_demo
from evpack.assets.fixture import fixture_model, fixture_text

__all__ = ["demo_text", "fixture_model", "fixture_text", "prepare_demo"]

"""The fixture model, calibrated on a few small runs, for all tests of the study."""

from __future__ import annotations

import pytest

from evpack.home import Home
from studies.ground import Ground, StudyModel


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    model = StudyModel("fixture", "fixture", "fixture", None, arm=16, runs=4)
    return Ground.prepare(model, Home(tmp_path_factory.mktemp("study")).create())

"""The models of the study and how much is asked of each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evpack.assets.demo import demo_text, write_speeches
from evpack.catalog.tuned import TunedParams, empty_document, load_tuned, with_entries
from evpack.errors import BadInput
from evpack.files import read_json, utc_now, write_json
from evpack.home import Home
from evpack.tuning.sweep import Request, tune
from studies.ground import StudyModel
from studies.subjects import Counts

EXPERTS = 4
_TRAINING = Path(__file__).parents[1] / "tools" / "train_fixture.py"
FULL = Counts(noop=200, mild=200, clean_runs=20, fault_runs=20, places=20, noise_seeds=20, pools=True)
"""0 of 200 bounds a rate by 1.83 %, 20 of 20 by 83 % from below."""
PART = Counts(noop=24, mild=48, clean_runs=3, fault_runs=1, places=1, noise_seeds=2, pools=False)
"""What a model that takes a minute per subject gets: its figures say how few they are."""


@dataclass(frozen=True)
class Studied:
    """A model with the number of its subjects."""

    counts: Counts
    about: str
    find: Callable[[Home], StudyModel]


def _fixture(home: Home) -> StudyModel:
    return StudyModel("fixture", "fixture", "fixture", str(demo_text(home)), arm=32, runs=26)


def _mixture(home: Home) -> StudyModel:
    return StudyModel("mixture", str(_trained(home)), "fixture", str(demo_text(home)), arm=32, runs=26)


def _demo(home: Home) -> StudyModel:
    return StudyModel("SmolLM2-135M", "SmolLM2-135M", "demo", None, arm=16, runs=12)


MODELS = {
    "fixture": Studied(FULL, "dense, 4 blocks, 0.5 M parameters, trained for this project", _fixture),
    "mixture": Studied(FULL, f"mixture of {EXPERTS} experts, 4 blocks, trained by the fixture's recipe", _mixture),
    "SmolLM2-135M": Studied(PART, "dense, 30 blocks, 135 M parameters, pretrained", _demo),
}


def tuned_for(model: StudyModel, model_id: str, home: Home, tell: Callable[[str], None]) -> TunedParams:
    """Clean parameters: the shipped ones, or what `evpack tune` finds for a model that has none.

    Raises:
        BadInput: model or text are not there.
    """
    shipped = load_tuned(None)
    if model_id in shipped.document["models"]:
        return shipped
    file = home.root / "study" / f"{model.name}-tuned.json"
    if not file.is_file():
        params = {"suite": model.suite, "text_path": model.text, "dataset": "text"}
        entries = {kind: entry for _, kind, entry in tune(Request(model.source, params), home, tell)}
        write_json(file, with_entries(empty_document(), model_id, entries, utc_now()))
    return TunedParams(read_json(file))


def _trained(home: Home) -> Path:
    """The mixture's checkpoint, trained once per home, in a process of its own (some minutes)."""
    target = home.root / "study" / "mixture"
    if not target.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            speeches = Path(scratch) / "speeches"
            write_speeches(speeches)
            command = [sys.executable, str(_TRAINING), str(speeches), str(target), "--experts", str(EXPERTS)]
            subprocess.run(command, check=True)
    return target / "model"


def named(name: str) -> Studied:
    """The model with this name.

    Raises:
        BadInput: for an unknown one.
    """
    if name not in MODELS:
        raise BadInput(f"no study model {name!r}", f"known: {', '.join(MODELS)}")
    return MODELS[name]

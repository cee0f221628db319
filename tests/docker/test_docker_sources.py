"""Where a container's baseline and variants come from: a hub, a GGUF file, and once more when the weights are gone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from evpack.errors import StepExit
from evpack.files import read_json
from evpack.home import Home
from evpack.plan.model import load_plan
from evpack.steps.state import read_attempts
from evpack.steps.variants import is_whole, release
from studies.scheduling.stage import FIXTURE
from tests.assets.test_assets_demo import gguf_file  # noqa: F401 - a fixture
from tests.docker.conftest import Plan, Run
from tests.plan.hub_server import HubServer, lead_client_to, serving

pytestmark = pytest.mark.docker

MARKS = [chr(code) for code in range(0x2010, 0x201F)]
"""Of a text for `gguf_file`, whose tokenizer knows few others."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as hub:
        lead_client_to(hub.endpoint, monkeypatch)
        yield hub


def test_with_a_network_the_worker_fetches_and_no_container_does(plan: Plan, in_container: Run, hub: HubServer) -> None:
    hub.add("org/tiny", FIXTURE / "model")
    run = plan(models=["org/tiny"], net=True, scenarios="nan_injection")
    hub.asked.clear()
    assert in_container(run, "org__tiny.setup_baseline") is StepExit.OK
    assert hub.downloads().count("model.safetensors") == 1
    hub.asked.clear()
    assert in_container(run, "org__tiny.calibrate") is StepExit.OK
    assert hub.asked == []


def test_a_gguf_file_is_converted_in_a_container_once(
    plan: Plan,
    in_container: Run,
    deployment: Home,
    gguf_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(1).choices(MARKS, k=6000)), encoding="utf-8")  # noqa: S311
    chosen = {
        "models": [str(gguf_file)],
        "scenarios": "nan_injection",
        "seq_len": 8,
        "stride": 8,
        "text_path": str(text),
    }
    first, second = (plan(**chosen, output_dir=str(tmp_path / name)) for name in ("first", "second"))
    assert in_container(first, "tiny.setup_baseline") is StepExit.OK
    (kept,) = deployment.models.iterdir()
    made = (kept / "model.safetensors").stat().st_mtime_ns
    assert in_container(second, "tiny.setup_baseline") is StepExit.OK
    assert [*deployment.models.iterdir()] == [kept] and (kept / "model.safetensors").stat().st_mtime_ns == made
    profiles = [read_json(run.model("tiny").root / "model_profile.json") for run in (first, second)]
    assert profiles[0] == profiles[1]


def test_a_variant_that_made_room_is_made_again_in_a_container(plan: Plan, in_container: Run) -> None:
    run = plan()
    create, evaluate = "fixture.quant_clean.create", "fixture.quant_clean.evaluate"
    for step in ("fixture.setup_baseline", "fixture.calibrate", "fixture.derive_preset", create):
        assert in_container(run, step) is StepExit.OK
    frozen = load_plan(run)
    release(run, frozen, frozen.step(evaluate))
    assert not is_whole(run, create)
    assert in_container(run, evaluate) is StepExit.OK
    assert [record["class"] for record in read_attempts(run, create)] == ["ok", "ok"]


def test_the_budget_takes_a_variant_back_in_a_campaign_of_containers(
    plan: Plan, in_container: Run, tmp_path: Path
) -> None:
    """Room for one of two: the one whose evaluation failed makes way, and is made again when that is tried again."""
    chosen = {"scenarios": "quant_clean,prune_50pct_stress", "stress_edit_runs": 1, "use_batch_edits": False}
    largest = max(step.variant_gb for step in load_plan(plan(**chosen)).steps)
    run = plan(**chosen, output_dir=str(tmp_path / "narrow"), variant_budget_gb=largest)
    first, second = "fixture.quant_clean", "fixture.prune_50pct_stress"
    for step in ("fixture.setup_baseline", "fixture.calibrate", "fixture.derive_preset", f"{first}.create"):
        assert in_container(run, step) is StepExit.OK
    assert in_container(run, f"{second}.create") is StepExit.NO_ROOM
    assert in_container(run, f"{first}.evaluate", memory_bytes=64 * 10**6) is StepExit.OUT_OF_HOST_MEMORY
    assert in_container(run, f"{second}.create") is StepExit.OK
    assert not is_whole(run, f"{first}.create")
    assert in_container(run, f"{first}.evaluate") is StepExit.NO_ROOM  # what it needs again finds no room either
    assert in_container(run, f"{second}.evaluate") is StepExit.OK
    assert in_container(run, f"{first}.evaluate") is StepExit.OK
    assert [record["class"] for record in read_attempts(run, f"{first}.create")] == ["ok", "no_room", "ok"]

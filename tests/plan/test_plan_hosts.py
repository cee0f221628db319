"""Several hosts: what EVPACK_HOSTS says, which host a model is planned for, and with which lanes and pools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evpack.cli import airflow, campaign
from evpack.errors import BadInput
from evpack.files import write_json
from evpack.home import Home
from evpack.plan.campaign import build_plan
from evpack.plan.hosts import HOSTS_ENV, Host, chosen_hosts
from evpack.plan.lanes import LANES, lane_named, lanes_of, next_lane, plain_id
from evpack.plan.memory import Devices, check_lanes
from evpack.plan.model import ModelSource, StepType
from evpack.plan.order import BASE, priority
from evpack.plan.placement import Place, described, place_named, share_out
from evpack.plan.sources import Source
from evpack.runtime.pools import pool_slots
from evpack.settings import Settings

NOW = "2026-01-01T00:00:00Z"
TWO = "alpha:8x80:32, beta-2:2x40.5:16"
MakeSettings = Callable[..., Settings]
MakeModel = Callable[..., Path]


def source(name: str, weights_gb: float) -> Source:
    return Source(
        id=name,
        source=ModelSource(kind="local", path=f"/{name}"),
        pin={},
        weights_gb=weights_gb,
        vocab=32_000,
        largest_tensor_gb=1.0,
        directory=Path(f"/{name}"),
    )


def test_hosts_are_listed_with_devices_memory_and_steps() -> None:
    assert chosen_hosts({HOSTS_ENV: TWO}) == (Host("alpha", 8, 80, 32), Host("beta-2", 2, 40.5, 16))
    assert chosen_hosts({}) == chosen_hosts({HOSTS_ENV: " "}) == ()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("alpha", "'alpha' is no host"),
        ("alpha:8x80:0", "'alpha:8x80:0' is no host"),
        ("alpha:8x80:32,", "'' is no host"),
        ("al pha:8x80:32", "'al pha:8x80:32' is no host"),
        ("a.b:8x80:32", "'a.b:8x80:32' is no host"),
        ("alpha:8x80:32,alpha:4x80:32", "'alpha:4x80:32' is listed twice"),
    ],
)
def test_what_is_no_list_of_hosts_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong) as caught:
        chosen_hosts({HOSTS_ENV: text})
    assert "alpha:8x80:32,beta:0x0:16" in str(caught.value.mend)


def test_each_host_has_lanes_pools_and_a_queue_of_its_own() -> None:
    lanes = lanes_of(chosen_hosts({HOSTS_ENV: TWO}))
    assert len({lane.id for lane in lanes}) == len(lanes) == 20 + 12  # two devices: no lanes of four and eight
    assert {(lane.host, lane.pool) for lane in lanes if lane.devices} == {
        ("alpha", "gpu-alpha"),
        ("beta-2", "gpu-beta-2"),
    }
    assert {lane.cpu_pool for lane in lanes} == {"cpu-alpha", "cpu-beta-2"}
    assert lanes_of(()) == LANES
    for lane in (*LANES, *lanes):
        assert lane_named(lane.id) == lane
        assert [priority(type_, lane.id, 3) for type_ in BASE] == [
            priority(type_, plain_id(lane.id), 3) for type_ in BASE
        ]
    assert lane_named("gpu3_s") is lane_named("tpu1_s-alpha") is None
    larger = next_lane("gpu1_m-beta-2", 2)
    assert larger is not None and larger.id == "gpu2_m-beta-2"
    assert next_lane("gpu2_m-beta-2", 2) is None


def test_pools_are_those_of_all_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_ENV, TWO)
    monkeypatch.setenv("NUM_GPUS", "4")
    assert pool_slots() == {"cpu-alpha": 32, "cpu-beta-2": 16, "gpu-alpha": 4, "gpu-beta-2": 2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Devices(8, 80)),
        ({"num_gpus": 3}, Devices(3, 80)),
        ({"num_gpus": 0}, Devices(0)),
        ({"gpu_id_list": "0,1", "gpu_memory_gb": 40}, Devices(2, 40)),
        ({"cuda_visible_devices": ""}, Devices(0)),
        ({"cuda_visible_devices": "-1", "gpu_id_list": "0"}, Devices(0)),
        ({"gpu_id_list": "6,7,8,9"}, Devices(2, 80)),  # two that the host has, two that another one may have
    ],
)
def test_settings_admit_devices_of_a_listed_host_as_of_this_one(settings: dict[str, Any], expected: Devices) -> None:
    assert described(Host("alpha", 8, 80, 32), Settings(**settings)) == expected


def test_a_listed_host_whose_devices_are_all_too_small_is_refused() -> None:
    small = Host("alpha", 2, 8, 32)
    with pytest.raises(BadInput, match="devices of alpha 8 GB each, GPU_MIN_FREE_GB=10"):
        described(small, Settings())
    assert described(small, Settings(num_gpus=1)) == Devices(1, 8)
    assert described(small, Settings(num_gpus=0)) == Devices(0)


def test_a_device_of_one_host_cannot_be_named_for_all() -> None:
    with pytest.raises(BadInput, match="'GPU-1a' is named by no number"):
        described(Host("alpha", 8, 80, 32), Settings(gpu_id_list="0,GPU-1a"))


def test_one_host_does_not_run_the_work_of_several(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_ENV, TWO)
    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    app = typer.Typer()
    for module in (campaign, airflow):
        module.register(app)
    for command in (["campaign", "run", "--suite", "fixture"], ["airflow", "up"]):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, BadInput) and "alpha, beta-2" in done.exception.what
    assert not home.root.exists()


def test_a_model_goes_where_it_fits_and_the_work_is_shared() -> None:
    settings = Settings()
    hosts = (Place("small", Devices(2, 24), 8), Place("large", Devices(8, 80), 32), Place("none", Devices(0), 64))
    models = [source("a", 3), source("b", 4), source("big", 140)]
    found = {model.id: place.host for model, (place, _) in zip(models, share_out(models, hosts, settings), strict=True)}
    assert found["big"] == "large"
    assert found["a"] == found["b"] == "small"  # the large one is busy with the big model
    with pytest.raises(BadInput, match="huge does not fit"):
        share_out([source("huge", 2000)], hosts, settings)
    assert share_out([source("a", 3)], hosts[2:], settings) == [(hosts[2], 0)]


@given(st.lists(st.floats(0.5, 60), min_size=1, max_size=12), st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_no_host_is_much_busier_than_it_must_be(weights: list[float], devices: list[int]) -> None:
    """The host that ends last began its last model when it was the least busy one for it."""
    settings = Settings()
    hosts = [Place(f"h{index}", Devices(count, 80), 8) for index, count in enumerate(devices)]
    models = [source(f"m{index}", weight) for index, weight in enumerate(weights)]
    busy = dict.fromkeys((host.host for host in hosts), 0.0)
    for model, (place, count) in zip(models, share_out(models, hosts, settings), strict=True):
        assert 1 <= count <= place.devices.count
        busy[place.host] += model.weights_gb
    ends = [busy[host.host] / host.devices.count for host in hosts]
    assert max(ends) <= sum(weights) / sum(devices) + max(weights) / min(devices) + 1e-9


def test_a_plan_binds_each_model_to_a_host(
    make_settings: MakeSettings, make_model: MakeModel, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOSTS_ENV, TWO)
    models = [str(make_model(name, rows)) for name, rows in (("a", 64), ("b", 128), ("c", 4096))]
    settings = make_settings(models=models, num_gpus="auto")
    plan = build_plan(settings, home, NOW).plan
    lanes = {model.label: model.lane for model in plan.models}
    assert set(lanes.values()) <= {"gpu1_s-alpha", "gpu1_s-beta-2"} and lanes["c"] == "gpu1_s-alpha"
    for step in plan.steps:
        assert step.lane == (plan.model(step.model).lane if step.model else None)
    write_json(home.pools, {"gpu-alpha": 8, "cpu-beta-2": 2, "gpu-beta-2": 2})
    with pytest.raises(BadInput, match="take 1 slots of pool cpu-alpha, which has 0"):
        check_lanes(plan, home.pools)
    assert place_named(settings, home, "beta-2").devices == Devices(2, 40.5)
    monkeypatch.setenv(HOSTS_ENV, "alpha:8x80:32")
    with pytest.raises(BadInput, match="planned for host beta-2; the deployment has alpha"):
        place_named(settings, home, "beta-2")
    assert plan.steps_of(StepType.CREATE, lane=lanes["c"])

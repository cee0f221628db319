"""The rule is Airflow's, the simulation keeps every limit, and the full suite stays near what no schedule can beat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.suites import chosen_scenarios, settings_for
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.plan.model import CLOSING, StepPlan, StepType, step_id
from evpack.settings import Settings
from studies.scheduling.__main__ import OVERHEAD_S, Case, main, plan_case, play, play_reference, replay
from studies.scheduling.bounds import figures, longest_chain, lower_bound
from studies.scheduling.durations import Host, by_formula, edit_rates
from studies.scheduling.rule import choose, starting_order
from studies.scheduling.shapes import FULL, full_models, pretend_hub, weights_gb
from studies.scheduling.simulator import Simulation, Span, host_pools
from studies.scheduling.tasks import CPU, GPU, Duration, Task, airflow_tasks
from tests.plans import model_plan, planned_run
from tests.scheduling.traces import of_run

RATES = {"quant_rtn": 0.3, "fp8_quant": 0.3, "magnitude_prune": 0.35, "lowrank_svd": 0.27, "pass": 0.7}
HOST = Host(edit_rates_gb_s=RATES)
"""Not the rates that were measured last: what is asserted here must not change with a benchmark."""
NEAR = 1.10
"""The promise, which `make bench AREA=scheduling` holds with the measured rates."""


def task(
    name: str, weight: int = 1, slots: int = 1, seconds: float = 1.0, needs: tuple[str, ...] = (), **more: Any
) -> Task:
    fields = {"dag_task": name, "map_index": 0, "pool": GPU, "type": StepType.EVALUATE, **more}
    devices = slots if fields["pool"] == GPU else 0
    return Task(
        id=name,
        weight=weight,
        slots=slots,
        needs=frozenset(needs),
        duration=Duration(seconds),
        devices=devices,
        **fields,
    )


def names(tasks: list[Task]) -> list[str]:
    return [found.id for found in tasks]


# --- the rule --------------------------------------------------------------------------------------------------------
def test_the_heaviest_first_then_the_older_run_then_the_list() -> None:
    waiting = [task("c", 5, map_index=1), task("b", 5, map_index=0), task("d", 5, age=1), task("a", 9)]
    assert names(choose(waiting, {GPU: 8}, 8)) == ["a", "b", "c", "d"]


def test_a_task_that_is_too_big_is_passed_over() -> None:
    waiting = [task("big", 9, slots=4), task("small", 1), task("other", 8, pool=CPU)]
    assert names(choose(waiting, {GPU: 3, CPU: 1}, 9)) == ["other", "small"]


def test_a_full_pool_stops_its_tasks_only() -> None:
    waiting = [task("a", 9), task("b", 8), task("c", 1, pool=CPU)]
    assert names(choose(waiting, {GPU: 0, CPU: 1}, 9)) == ["c"]


def test_when_nothing_could_start_more_are_looked_at() -> None:
    waiting = [*(task(f"big{i}", 9, slots=4, dag_task="big", map_index=i) for i in range(5)), task("small", 1)]
    assert names(choose(waiting, {GPU: 3}, 3)) == ["small"]
    # but something that starts ends the search, as in Airflow: the rest waits for the next loop
    assert names(choose([*waiting, task("heavy", 99)], {GPU: 3}, 3)) == ["heavy"]


tasks_strategy = st.lists(
    st.builds(
        lambda number, weight, slots, pool: (number, weight, slots, pool),
        st.integers(0, 10**6),
        st.integers(1, 5),
        st.integers(1, 4),
        st.sampled_from([GPU, CPU]),
    ),
    max_size=20,
    unique_by=lambda row: row[0],
)


@given(tasks_strategy, st.integers(0, 6), st.integers(0, 3), st.integers(1, 30))
def test_what_starts_fits_and_is_in_order(rows: list[Any], gpu: int, cpu: int, limit: int) -> None:
    waiting = [task(str(number), weight, slots, pool=pool) for number, weight, slots, pool in rows]
    started = choose(waiting, {GPU: gpu, CPU: cpu}, limit)
    for pool, count in ((GPU, gpu), (CPU, cpu)):
        assert sum(found.slots for found in started if found.pool == pool) <= count
    assert started == sorted(started, key=starting_order)
    fits = [found for found in waiting if found.slots <= {GPU: gpu, CPU: cpu}[found.pool]]
    assert bool(started) == bool(fits)


# --- the simulation --------------------------------------------------------------------------------------------------
def check_limits(spans: list[Span], slots: dict[str, int]) -> None:
    """No pool exceeded, no device held twice, nothing before its needs."""
    ends = {span.task.id: span.end for span in spans}
    for span in spans:
        beside = [other for other in spans if other.start <= span.start < other.end]
        for pool, count in slots.items():
            assert sum(other.task.slots for other in beside if other.task.pool == pool) <= count
        held = [device for other in beside for device in other.devices]
        assert len(held) == len(set(held))
        assert len(span.devices) == span.task.devices
        assert all(ends[need] <= span.start for need in span.task.needs)


@given(tasks_strategy, st.data())
def test_every_task_runs_once_within_the_limits(rows: list[Any], data: st.DataObject) -> None:
    tasks: list[Task] = []
    for number, weight, slots, pool in rows:
        needs = data.draw(st.sets(st.sampled_from([t.id for t in tasks]), max_size=2)) if tasks else set()
        seconds = data.draw(st.integers(1, 5))
        tasks.append(
            task(str(number), weight, min(slots, 2) if pool == CPU else slots, seconds, tuple(needs), pool=pool)
        )
    slots = {GPU: 4, CPU: 2}
    spans = Simulation(tasks, slots).run()
    assert sorted(span.task.id for span in spans) == sorted(t.id for t in tasks)
    check_limits(spans, slots)


def test_a_task_that_can_never_start_is_told() -> None:
    with pytest.raises(RuntimeError, match="1 tasks can never start, among them a"):
        Simulation([task("a", slots=3)], {GPU: 2}).run()


def test_shared_work_is_done_once() -> None:
    shared = [replace(task(name), duration=Duration(1.0, "pass", 10.0)) for name in "abc"]
    spans = Simulation(shared, {GPU: 2}).run()
    assert [(span.start, span.end) for span in spans] == [(0, 11), (0, 11), (11, 12)]


# --- the full suite --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Case]:
    home = Home(tmp_path_factory.mktemp("home"))
    pretend_hub(home, full_models())
    return {devices: plan_case(devices, home, devices * 12) for devices in (1, 2, 4, 8)}


def test_sizes_are_those_of_the_published_checkpoints() -> None:
    known = {"mistralai/Mistral-7B-v0.1": 14.48, "mistralai/Mixtral-8x7B-v0.1": 93.4, "Qwen/Qwen1.5-72B": 144.6}
    assert set(FULL) == set(full_models())
    for model, size in known.items():
        assert weights_gb(FULL[model]) == pytest.approx(size, rel=1e-3)


def test_models_get_the_devices_they_need(cases: dict[int, Case]) -> None:
    assert [len(cases[devices].plan.models) for devices in (1, 2, 4, 8)] == [2, 5, 6, 6]
    assert {model.label: model.devices for model in cases[8].plan.models} == {
        "Mistral-7B-v0.1": 1,
        "Qwen2.5-14B": 1,
        "Qwen2.5-32B": 2,
        "Yi-34B": 2,
        "Mixtral-8x7B-v0.1": 2,
        "Qwen1.5-72B": 4,
    }
    assert set(cases[1].left_out) == set(full_models()) - {model.id for model in cases[1].plan.models}


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("order", ["small_first", "large_first"])
def test_the_makespan_is_near_the_lower_bound(cases: dict[int, Case], devices: int, order: str) -> None:
    spans, found = play(cases[devices], order, HOST)
    assert found["makespan_s"] <= NEAR * found["bound_s"]
    assert 0 < found["utilisation"] <= 1
    check_limits(spans, host_pools(devices, devices * 12))


@pytest.mark.parametrize(("devices", "slots"), [(1, 2), (2, 2), (1, 4), (2, 4)])
def test_the_promise_holds_with_fewer_processor_slots_than_edits(tmp_path: Path, devices: int, slots: int) -> None:
    home, host = Home(tmp_path), replace(HOST, cpu_slots_per_device=slots)
    pretend_hub(home, full_models())
    case = plan_case(devices, home, devices * slots)
    found = play(case, "small_first", host)[1]
    assert found["makespan_s"] <= NEAR * found["bound_s"]
    together = plan_case(devices, home, devices * slots, use_batch_edits=True)
    assert found["makespan_s"] <= play(together, "small_first", host)[1]["makespan_s"]


@pytest.mark.parametrize(("order", "first"), [("small_first", 0), ("large_first", -1)])
def test_small_models_are_done_first_or_last_as_the_order_says(cases: dict[int, Case], order: str, first: int) -> None:
    """On two devices: on more, the largest model has the longest chain, and ends last in either order."""
    case = cases[2]
    spans, _ = play(case, order, HOST)
    ends = {span.task.model: span.end for span in sorted(spans, key=lambda span: span.end) if span.task.model}
    assert min(ends, key=lambda name: ends[name]) == case.plan.models[first].name
    assert case.plan.models[0].weights_gb < case.plan.models[-1].weights_gb


def test_no_lane_waits_for_another_lanes_presets(cases: dict[int, Case]) -> None:
    case = cases[8]
    tasks = airflow_tasks(case.plan, by_formula(case.plan, case.settings, FULL, HOST))
    lane_of = {found.id: found.dag_task.partition(".")[0] for found in tasks}
    for found in tasks:
        if found.model:
            assert {lane_of[need] for need in found.needs} <= {lane_of[found.id]}


def test_the_reference_needs_longer(cases: dict[int, Case]) -> None:
    _, ours = play(cases[8], "small_first", HOST)
    theirs = play_reference(cases[8], HOST)
    assert ours["first_model_s"] < theirs["first_model_s"]
    assert ours["makespan_s"] < theirs["makespan_s"]


def test_two_campaigns_share_the_devices(cases: dict[int, Case]) -> None:
    """Fairness: places in the lists decide between runs, so both go on side by side, and the older is ahead."""
    case = cases[8]
    tasks = airflow_tasks(case.plan, by_formula(case.plan, case.settings, FULL, HOST))
    both = [*of_run(tasks, "old", 0), *of_run(tasks, "new", 1)]
    spans = Simulation(both, host_pools(8, 96), overhead_s=OVERHEAD_S).run()
    check_limits(spans, host_pools(8, 96))
    starts = [span.task.id.partition("/")[0] for span in spans if span.task.dag_task == "gpu1_s.cells.evaluate"]
    half = starts[: len(starts) // 2]
    assert 0.3 < half.count("old") / len(half) < 0.7
    first = {run: next(s.start for s in spans if s.task.id.startswith(run)) for run in ("old", "new")}
    assert first["old"] <= first["new"]


# --- figures ---------------------------------------------------------------------------------------------------------
def test_figures_and_bound_of_a_schedule_worked_out_by_hand() -> None:
    tasks = [
        task("m.setup", pool=CPU, seconds=2, model="m", type=StepType.SETUP_BASELINE),
        task("m.a", 2, slots=2, seconds=4, needs=("m.setup",), model="m"),
        task("m.b", 1, slots=1, seconds=3, needs=("m.setup",), model="m"),
        task("verdict", pool=CPU, seconds=1, needs=("m.a", "m.b"), type=StepType.COMPILE_VERDICT),
    ]
    spans = Simulation(tasks, {GPU: 2, CPU: 1}).run()
    found = figures(spans, 2)
    assert found.makespan_s == 2 + 4 + 3 + 1
    assert found.first_model_s == found.mean_model_s == 9
    assert found.utilisation == pytest.approx((2 * 4 + 3) / (2 * 9))
    assert longest_chain(tasks, 0) == 2 + 4 + 1
    assert lower_bound(tasks, 2, 0) == 7
    assert lower_bound(tasks, 1, 0) == 11


def test_a_finished_campaign_is_played_on_another_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def step(type_: StepType, scenario: str | None = None, *needs: str) -> StepPlan:
        return StepPlan(
            id=step_id(type_, "m", scenario), type=type_, model="m", scenario=scenario, lane="gpu1_s", needs=needs
        )

    scenarios = chosen_scenarios(settings_for({"suite": "fixture"}, {}, {}, Home(tmp_path))).scenarios[:2]
    steps = [step(StepType.SETUP_BASELINE), step(StepType.CALIBRATE), step(StepType.DERIVE_PRESET)]
    steps += [step(type_, found.id) for found in scenarios for type_ in (StepType.CREATE, StepType.EVALUATE)]
    steps += [StepPlan(id=name.value, type=name) for name in CLOSING]
    model = model_plan(devices=1, lane="gpu1_s")
    run = planned_run(tmp_path / "run", steps, Settings(), models=(model,), scenarios=scenarios)
    for found in steps:
        seconds = 60.0 if found.type is StepType.EVALUATE else 0.0
        record = {"seconds": seconds, "leased": {"waited_s": 10.0} if seconds else None, "started_at": "", "try": 1}
        write_json(run.attempts(found.id) / "001.json", record)

    def makespan(devices: int) -> float:
        return replay(run, devices, 1)["makespan_s"]

    assert makespan(1) - makespan(2) == pytest.approx(50 + OVERHEAD_S, abs=OVERHEAD_S)
    assert main(["--run", str(run.root), "--devices", "2"]) == 0
    assert "makespan_s" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--run", str(run.root)])
    assert "needs 1 devices, not 0" in capsys.readouterr().err


def test_rates_of_the_edits_come_from_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edit_rates().keys() == RATES.keys()
    rows = [
        *({"name": f"{name}: x", "unit": "MB/s", "value": 1000 * RATES[name]} for name in list(RATES)[:3]),
        {"name": "lowrank_svd: x", "unit": "s", "value": 4096 * 14336 * 2 / (RATES["lowrank_svd"] * 10**9)},
        {"name": "batch of edits", "unit": "s", "value": RATES["pass"], "reference": 1.0},
    ]
    write_json(tmp_path / "edits.json", {"rows": rows})
    monkeypatch.setattr("studies.scheduling.durations.EDIT_BENCHMARK", tmp_path / "edits.json")
    assert edit_rates() == pytest.approx(RATES)


def test_the_committed_study_is_of_this_code(cases: dict[int, Case]) -> None:
    """Bounds depend on the plan and the formulas alone: a change there asks for `make study-scheduling`."""
    from studies.scheduling.__main__ import RESULTS

    committed = read_json(Path(RESULTS) / "scheduling.json")
    assert [case["devices"] for case in committed["cases"]] == [1, 2, 4, 8]
    for case in committed["cases"]:
        plan = cases[case["devices"]].plan
        assert case["models"] == {model.id: model.devices for model in plan.models}

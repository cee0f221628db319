"""`python -m studies.scheduling`: the full suite on 1, 2, 4 and 8 devices; results and pictures to studies/results/.

With `--run RUN_DIR --devices N --cpu-slots M` a finished campaign on such a host, with the durations that it measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evpack.catalog.suites import settings_for
from evpack.errors import BadInput, EvpackError
from evpack.files import write_json
from evpack.home import Home
from evpack.plan.campaign import build_plan
from evpack.plan.memory import Devices
from evpack.plan.model import CampaignPlan, load_plan
from evpack.plan.order import ORDERS
from evpack.publishing import write_atomic
from evpack.render.timeline import Bar, timeline
from evpack.rundir import RunDir
from evpack.runtime.threads import frozen_settings
from evpack.settings import Settings
from studies.scheduling.bounds import figures, longest_chain, lower_bound
from studies.scheduling.durations import Host, by_formula, measured
from studies.scheduling.reference import MONITOR_S, Reference
from studies.scheduling.shapes import FULL, full_models, pretend_hub
from studies.scheduling.simulator import Simulation, Span, host_pools
from studies.scheduling.tasks import CPU, GPU, Task, airflow_tasks

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "scheduling.md"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
"""Where the page has the table of figures."""
DEVICE_GB = 80.0
DEVICE_COUNTS = (1, 2, 4, 8)
OVERHEAD_S = 1.5
"""What an Airflow task holds its slots beyond its step: the promise of `make bench AREA=scheduling`."""
NOW = "2026-01-01T00:00:00Z"
PICTURED = 8


@dataclass(frozen=True)
class Case:
    """The full suite, planned for a number of devices."""

    devices: int
    settings: Settings
    plan: CampaignPlan
    left_out: tuple[str, ...]
    """Models that do not fit on so many devices."""


def plan_case(devices: int, home: Home, cpu_slots: int, **params: Any) -> Case:
    """Plan the full suite as a campaign would; models that are refused as too large are left out."""
    write_json(home.pools, host_pools(devices, cpu_slots))
    models = full_models()
    while True:
        settings = settings_for({"suite": "full", "models": models, **params}, {}, {}, home)
        try:
            plan = build_plan(settings, home, NOW, Devices(devices, DEVICE_GB)).plan
        except BadInput as refusal:
            fitting = [model for model in models if not refusal.what.startswith(f"{model} does not fit")]
            if len(fitting) == len(models):
                raise
            models = fitting
            continue
        return Case(devices, settings, plan, tuple(model for model in full_models() if model not in models))


def play(case: Case, order: str, host: Host) -> tuple[list[Span], dict[str, float]]:
    """The campaign under Airflow's rule: its spans, and its figures beside the lower bound."""
    tasks = airflow_tasks(case.plan, by_formula(case.plan, case.settings, FULL, host), order)
    return _simulated(tasks, case.devices, case.devices * host.cpu_slots_per_device)


def replay(run: RunDir, devices: int, cpu_slots: int) -> dict[str, float]:
    """The figures of a finished campaign on a host of so many devices and processor slots, its steps as long as it saw.

    Raises:
        BadInput: when there is no plan, or a model of it needs more devices.
    """
    plan = load_plan(run)
    if (most := max(model.devices for model in plan.models)) > devices:
        raise BadInput(f"a model of {run.root} needs {most} devices, not {devices}", f"give --devices {most} or more")
    return _simulated(airflow_tasks(plan, measured(run, plan), frozen_settings(run).order), devices, cpu_slots)[1]


def _simulated(tasks: Sequence[Task], devices: int, cpu_slots: int) -> tuple[list[Span], dict[str, float]]:
    spans = Simulation(tasks, host_pools(devices, cpu_slots), overhead_s=OVERHEAD_S).run()
    bound = lower_bound(tasks, devices, OVERHEAD_S)
    found = figures(spans, devices)
    chain = longest_chain(tasks, OVERHEAD_S)
    return spans, {**asdict(found), "bound_s": bound, "chain_s": chain, "ratio": found.makespan_s / bound}


def play_reference(case: Case, host: Host) -> dict[str, float]:
    """The same models under the reference's graph, priorities and workers; without verdict and pack."""
    durations = by_formula(case.plan, case.settings, FULL, host)
    loading = {model.name: host.start_s + model.weights_gb / host.load_gb_s for model in case.plan.models}
    rule = Reference(case.plan, case.settings, durations, loading, DEVICE_GB, case.devices)
    spans = Simulation(rule.tasks, {GPU: case.devices, CPU: 0}, rule, tick_s=MONITOR_S).run()
    return asdict(figures(spans, case.devices))


def picture(case: Case, spans: Sequence[Span]) -> str:
    """The timeline of a simulated campaign."""
    labels = {model.name: model.label for model in case.plan.models}
    bars = [
        Bar(
            step=span.task.id,
            kind=span.task.type.value,
            model=labels.get(span.task.model or ""),
            start=span.start,
            end=span.end,
            devices=tuple(f"device {number}" for number in span.devices),
        )
        for span in spans
    ]
    return timeline(bars, [f"device {number}" for number in range(case.devices)])


def study(host: Host) -> dict[str, Any]:
    """All cases; also writes the pictures."""
    cases = []
    with tempfile.TemporaryDirectory(prefix="evpack-study-") as folder:
        home = Home(Path(folder))
        pretend_hub(home, full_models())
        for devices in DEVICE_COUNTS:
            case = plan_case(devices, home, devices * host.cpu_slots_per_device)
            results: dict[str, Any] = {}
            for order in ORDERS:
                spans, results[order] = play(case, order, host)
                if devices == PICTURED:
                    write_atomic(RESULTS / f"scheduling_{order}.svg", picture(case, spans).encode())
            results["reference"] = play_reference(case, host)
            batch = plan_case(devices, home, devices * host.cpu_slots_per_device, use_batch_edits=True)
            _, results["small_first_edits_in_one_pass"] = play(batch, ORDERS[0], host)
            cases.append(
                {
                    "devices": devices,
                    "models": {model.id: model.devices for model in case.plan.models},
                    "left_out": list(case.left_out),
                    "policies": results,
                }
            )
    return {
        "suite": "full",
        "device_gb": DEVICE_GB,
        "task_overhead_s": OVERHEAD_S,
        "host": asdict(host),
        "cases": cases,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| devices | models | policy | makespan | / bound | first model | mean model | utilisation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        for policy, row in case["policies"].items():
            ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
            times = " | ".join(f"{row[name]:.0f} s" for name in ("first_model_s", "mean_model_s"))
            start = f"| {case['devices']} | {len(case['models'])} | {policy} | {row['makespan_s']:.0f} s | {ratio} "
            lines.append(f"{start}| {times} | {row['utilisation']:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, write studies/results/scheduling.json and the table in docs/scheduling.md, print the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.scheduling")
    parser.add_argument("--run", type=Path, help="run directory of a finished campaign, in the place of the suite")
    parser.add_argument("--devices", type=int, default=0, help="of the host that it is played on")
    parser.add_argument("--cpu-slots", type=int, default=1, help="steps at once on its processor")
    options = parser.parse_args(arguments)
    if options.run:
        try:
            found = replay(RunDir(options.run.absolute()), options.devices, options.cpu_slots)
        except EvpackError as error:
            parser.error(error.diagnostics())
        print(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        return 0
    result = study(Host())
    write_json(RESULTS / "scheduling.json", result)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    write_atomic(PAGE, f"{before}{BEGIN}\n{table(result)}\n{END}{rest.partition(END)[2]}".encode())
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

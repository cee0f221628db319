"""One factory, several DAGs: lanes of mapped groups between `plan` and `gate`. Holds no logic of the campaign."""

# Airflow's decorators have no types mypy can follow (see pyproject).
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, TaskGroup, task_group

from evpack.airflow.config import CAMPAIGN_DAG, NIGHTLY_DAG, WEIGHT_RULE
from evpack.airflow.endings import PLAN_TASK, TASK_RETRIES, StepRetryPolicy
from evpack.airflow.operators import (
    CampaignStepOperator,
    GateOperator,
    PlanOperator,
    SelectCells,
    SelectModels,
    StepOperator,
)
from evpack.airflow.params import campaign_params
from evpack.plan.hosts import chosen_hosts
from evpack.plan.lanes import Lane, lanes_of
from evpack.plan.model import StepType
from evpack.runtime.choice import DOCKER, chosen_runtime

NIGHTLY_CRON = "0 2 * * *"
"""UTC. The DAG has no start date: switching it on waits for the next night, and backfills may reach back freely."""

_ALWAYS = "all_done"
"""A step whose needs are missing runs, says so and fails as blocked; it is never skipped."""


def build_campaign(dag_id: str, *, schedule: Any = None, description: str, **dag_options: Any) -> DAG:
    """A DAG that runs one campaign.

    Args:
        schedule: an Airflow timetable, None for runs by hand.
        dag_options: further arguments of the DAG.
    """
    with DAG(
        dag_id,
        schedule=schedule,
        catchup=False,
        description=description,
        tags=["evpack"],
        render_template_as_native_obj=False,
        default_args={"retry_policy": StepRetryPolicy(), **TASK_RETRIES},
        **dag_options,
    ) as dag:
        plan = PlanOperator(task_id=PLAN_TASK)
        verdict = CampaignStepOperator(task_id=StepType.COMPILE_VERDICT.value, trigger_rule=_ALWAYS)
        for lane in lanes_of(chosen_hosts()):
            _lane(lane, plan, verdict)
        pack = CampaignStepOperator(task_id=StepType.BUILD_PACK.value, trigger_rule=_ALWAYS)
        check = CampaignStepOperator(task_id=StepType.VERIFY_PACK.value, trigger_rule=_ALWAYS)
        gate = GateOperator(task_id="gate", trigger_rule=_ALWAYS)
        plan >> verdict >> pack >> check >> gate
    # Last, because every task copies the params the DAG has when the task is made, and serialises its copy.
    for name, param in campaign_params().items():
        dag.params[name] = param
    return dag


def build_dags() -> tuple[DAG, DAG]:
    """The campaign by hand, and the same every night (paused until somebody switches it on)."""
    campaign = build_campaign(
        CAMPAIGN_DAG, description="Edit, damage and evaluate a suite of models; seal the evidence."
    )
    nightly = build_campaign(
        NIGHTLY_DAG,
        # Airflow's False still starts the last night's run for a tenth of the period after it: 2.4 hours.
        schedule=CronTriggerTimetable(NIGHTLY_CRON, timezone="UTC", run_immediately=timedelta(0)),
        description="The campaign every night; runs by date and backfills.",
        max_active_runs=1,
        is_paused_upon_creation=True,
    )
    return campaign, nightly


def _lane(lane: Lane, plan: PlanOperator, verdict: CampaignStepOperator) -> None:
    """Models of one device count and size class: first each model's preset, then its cells."""
    step: dict[str, Any] = ({"queue": lane.host} if lane.host else {}) | {
        "weight_rule": WEIGHT_RULE,
        "trigger_rule": _ALWAYS,
        "map_index_template": "{{ task.title }}",
    }
    on_device = {**step, "pool": lane.pool, "pool_slots": lane.pool_slots}
    # Edits stream tensor by tensor on the CPU.
    on_cpu = {**step, "pool": lane.cpu_pool, "pool_slots": 1}

    step_operator = _step_operator()
    with TaskGroup(lane.id):
        select_models = SelectModels(lane=lane.id)
        select_cells = SelectCells(lane=lane.id)
        edges: dict[str, Any] = {}

        @task_group(group_id="models")
        def models(subject: str, label: str) -> None:
            setup, calibrate, preset = (
                step_operator(task_id=type_.value, subject=subject, title=label, **options)
                for type_, options in (
                    (StepType.SETUP_BASELINE, on_cpu),
                    (StepType.CALIBRATE, on_device),
                    (StepType.DERIVE_PRESET, on_cpu),
                )
            )
            setup >> calibrate >> preset
            edges.update(setup=setup, preset=preset)

        @task_group(group_id="cells")
        def cells(subject: str, label: str) -> None:
            create = step_operator(task_id=StepType.CREATE.value, subject=subject, title=label, **on_cpu)
            evaluate = step_operator(task_id=StepType.EVALUATE.value, subject=subject, title=label, **on_device)
            create >> evaluate
            edges.update(create=create, evaluate=evaluate)

        models.expand_kwargs(select_models.output)
        cells.expand_kwargs(select_cells.output)

    plan >> [select_models, select_cells]
    edges["setup"] >> edges["create"]
    edges["preset"] >> edges["evaluate"]
    # The preset too: where nothing but presets is made, the cells are skipped long before.
    [edges["preset"], edges["evaluate"]] >> verdict


def _step_operator() -> type[Any]:
    """The operator of the deployment's runtime; the one for containers is imported where it is used (it takes 0.3 s).

    Raises:
        BadInput: when EVPACK_RUNTIME names no runtime.
    """
    if chosen_runtime() == DOCKER:
        from evpack.airflow.docker_operator import ContainerStepOperator

        return ContainerStepOperator
    return StepOperator

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.scenarios import Scenario
from evpack.evaluation.report import RecordFile, ReportMeta, build_report
from evpack.files import canonical_json, pretty_json
from evpack.plan.model import CampaignPlan, StepPlan, StepType, step_id
from evpack.verdict.evidence import ReportKey, expected_reports, read_evidence
from evpack.verdict.rules import Verdict, compile_verdict
from tests.plans import campaign_plan, model_plan

NOW = "2026-11-23T15:00:00Z"
PM = {"type": "validation_flag", "flag": "primary_metric_acceptable", "expected": False}
DG = {"type": "primary_metric", "field": "degraded", "expected": True}
SP = {"type": "validation_flag", "flag": "spectral_stable", "expected": False}
CAP = {"type": "guard_remediation", "guard": "spectral", "field": "caps_applied", "min": 1}
INV = {"type": "invariants_status", "allowed": ["fail", "error"]}
PROBE = {"type": "probe", "file": "rmt_probe.json"}


def scenario(
    id_: str, category: str, strictness: str, detectors: Sequence[Mapping[str, Any]] = (), **more: Any
) -> Scenario:
    if category == "error_injection":
        generation: dict[str, Any] = {"kind": "error", "error_type": id_}
    else:
        generation = {"kind": "edit", "edit_spec": "quant_rtn:8:0:ffn", "version": category}
    requirements = {"detectors_any_of": list(detectors), **more}
    return Scenario.model_validate(
        {
            "id": id_,
            "category": category,
            "failure_class": "x",
            "strictness": strictness,
            "generation": generation,
            "requirements": requirements,
            "intent": "test",
            "primary_guard": "invariants" if INV in detectors else "primary_metric",
        }
    )


CLEAN = scenario("quant_clean", "clean", "must_pass")
STRESS = scenario("prune_stress", "stress", "must_fail", [PM, DG], catastrophic_required=True)
ERROR = scenario("nan_injection", "error_injection", "must_detect", [INV])
SHOWN = scenario("quant_stress", "stress", "informational", [PM, SP, CAP])
SHOWN_TOO = scenario("fp8_stress", "stress", "informational", [PM, SP, CAP])
SHOWN_ERROR = scenario("rmt_noise", "error_injection", "informational", [PROBE])


def make_plan(scenarios: Sequence[Scenario], models: Sequence[str] = ("tiny",)) -> CampaignPlan:
    runs = {"clean": 3, "stress": 2, "error_injection": 1}
    steps = (
        StepPlan(
            id=step_id(StepType.EVALUATE, model, item.id),
            type=StepType.EVALUATE,
            model=model,
            scenario=item.id,
            runs=tuple(range(1, runs[item.category.value] + 1)),
        )
        for model in models
        for item in scenarios
    )
    planned = tuple(model_plan(name, id=f"org/{name}", weights_gb=0.1, batch=8) for name in models)
    return campaign_plan(steps, models=planned, scenarios=tuple(scenarios), created_at=NOW)


def records(key: ReportKey, side: str, losses: Sequence[float | None], **changes: Any) -> bytes:
    windows = [
        {
            "id": index,
            "arm": "preview" if index < len(losses) // 2 else "final",
            "tokens_sha256": hashlib.sha256(f"{key.run}:{index}".encode()).hexdigest(),
            "predicted_tokens": 127,
            "nll_sum": None if loss is None else loss * 127,
            "reason": "loss is nan" if loss is None else None,
        }
        for index, loss in enumerate(losses)
    ]
    document = {
        "schema": "evpack_window_records_v1",
        "model": key.model,
        "side": side,
        "scenario": key.scenario if side == "subject" else None,
        "run": key.run,
        "seed": 41 + key.run,
        "windows_digest": "a" * 64,
        "checkpoint_digest": "b" * 64,
        "compute": {"device": "cpu", "dtype": "float32", "attention": "eager", "batch": 8},
        "versions": {},
        "windows": windows,
    }
    return canonical_json(document | changes)


@dataclass
class Campaign:
    """Files of a pretended run directory, made by the project's own functions from losses."""

    plan: CampaignPlan
    policy: Policy = field(default_factory=lambda: resolve_policy("balanced", "small"))
    guards_order: tuple[str, ...] = ("invariants",)
    files: dict[str, bytes] = field(default_factory=dict)

    def write(
        self,
        key: ReportKey,
        *,
        ratio: float | None = 1.0,
        spread: float = 0.002,
        guards: Mapping[str, Mapping[str, Any]] | None = None,
        sidecars: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """One report: ratio of the subject to its baseline (None: every loss is NaN), paired noise, guard blocks."""
        item = self.plan.scenario(key.scenario)
        base = [3.0 + index / 40 for index in range(32)]
        noise = [spread * (index % 4 - 1.5) for index in range(32)]
        shift = None if ratio is None else math.log(ratio)
        ours = [None if shift is None else b + shift + e for b, e in zip(base, noise, strict=True)]
        blocks = {guard: {"status": "pass", "enabled": False} for guard in self.guards_order}
        report = build_report(
            meta=ReportMeta(
                model_id=f"org/{key.model}",
                model_name=key.model,
                scenario=key.scenario,
                category=item.category.value,
                strictness=item.strictness.value,
                run=key.run,
                seed=41 + key.run,
                plan_digest=self.plan.digest(),
            ),
            subject=RecordFile("records.json", records(key, "subject", ours)),
            baseline=RecordFile("b.json", records(key, "baseline", base, **changes)),
            policy=self.policy,
            guards=blocks | dict(guards or {}),
            guards_order=self.guards_order,
            dataset={"provider": "text", "seq_len": 128},
            provenance={},
            edit={"name": "x"},
            generated_at=NOW,
        )
        path = expected_reports(self.plan)[key]
        self.files[path] = pretty_json(report)
        for name, content in (sidecars or {}).items():
            self.files[path.replace("evaluation.report.json", name)] = pretty_json(content)

    def write_good(self) -> Campaign:
        """What every scenario is expected to give."""
        for key in expected_reports(self.plan):
            strictness = self.plan.scenario(key.scenario).strictness.value
            if strictness == "must_fail":
                self.write(key, ratio=1.6)
            elif strictness == "must_detect":
                self.write(key, ratio=None, guards={"invariants": {"status": "fail"}})
            elif strictness == "informational":
                self.write(key, ratio=1.3)
            else:
                self.write(key)
        return self

    def path(self, scenario: str, run: int = 1, model: str = "tiny") -> str:
        return expected_reports(self.plan)[ReportKey(model, scenario, run)]

    def verdict(self) -> Verdict:
        evidence = read_evidence(self.plan, self.files.get)
        return compile_verdict(self.plan, evidence, self.policy, guards_order=self.guards_order, timestamp=NOW)


MakeCampaign = Callable[..., Campaign]


@pytest.fixture(scope="session")
def campaign() -> MakeCampaign:
    def make(*scenarios: Scenario, models: Sequence[str] = ("tiny",), guards_order: tuple[str, ...] = ("invariants",)):
        return Campaign(make_plan(scenarios or (CLEAN, STRESS, ERROR), models), guards_order=guards_order)

    return make


@pytest.fixture(scope="session")
def catalog() -> Mapping[str, Scenario]:
    shown = {"shown": SHOWN, "shown_too": SHOWN_TOO, "shown_error": SHOWN_ERROR}
    return {"clean": CLEAN, "stress": STRESS, "error": ERROR, **shown}


@pytest.fixture(scope="session")
def new_scenario() -> Callable[..., Scenario]:
    return scenario

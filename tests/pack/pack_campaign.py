"""A finished campaign made of invented losses, written by the project's own functions: records to verdict to pack."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from pack_guards import ORDER, SPEC, Model, encoded, guards

from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.scenarios import Category, EditGeneration, Manifest, Scenario
from evpack.data.windows import WindowDemand, WindowSet, make_windows, window_digest
from evpack.evaluation.assess import paired_differences
from evpack.evaluation.bca import bca_interval
from evpack.evaluation.records import ARMS, Compute, WindowLoss, WindowRecords
from evpack.evaluation.report import RecordFile, ReportMeta, build_report, provider_digest
from evpack.files import pretty_json, sha256_bytes, sha256_file, write_json
from evpack.home import Home
from evpack.plan.model import CampaignPlan, ModelSource, StepPlan, StepType, step_id
from evpack.rundir import ModelDir, RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext
from evpack.steps.compile_verdict import compile_verdict_step
from tests.plans import campaign_plan, model_plan

MODEL = model_plan(
    "example__tiny",
    id="example/tiny",
    label="tiny",
    source=ModelSource(kind="local", path="/models/tiny", revision="sha256:" + "5" * 64),
    weights_gb=0.001,
    batch=16,
)
SETTINGS = Settings(
    suite="fixture",
    profile="small",
    dataset="text",
    seq_len=128,
    stride=128,
    preview_windows=16,
    final_windows=16,
    eval_batch=16,
    drift_calibration_runs=3,
    clean_edit_runs=3,
    stress_edit_runs=2,
    guards_order=ORDER,
)
SHIFTS = {"quant_clean": 0.001, "prune_clean": 0.005, "prune_50pct_stress": 0.4, "scale_explosion": 2.0}
"""Mean log-loss difference per scenario, nats per token; nan_injection has no finite loss."""
SOURCE = {
    "uri": "https://example.org/project.git",
    "commit": "0" * 40,
    "branch": "main",
    "describe": "v0",
    "dirty": False,
    "recorded_at": "2026-01-01T00:00:00Z",
}
NOW = "2026-01-01T00:00:00Z"
TOKENIZER = "t" * 64


class Campaign:
    """Writes a run directory piece by piece; `finish` compiles the verdict."""

    def __init__(self, root: Path, runs: int = 3, layers: int = 1, **settings: Any) -> None:
        self.run = RunDir(root)
        self.runs = runs
        self.paper = Model(layers)
        self.settings = SETTINGS.model_copy(
            update={"clean_edit_runs": runs, "drift_calibration_runs": runs, **settings}
        )
        self.policy: Policy = resolve_policy(SETTINGS.tier, SETTINGS.profile)
        self.manifest = _manifest()
        self.plan = _plan(self.manifest, self.settings, self.paper)
        self.model: ModelDir = self.run.model(MODEL.name)
        tokens = np.random.default_rng(7).integers(0, 1024, size=(1, 128 * 40 * runs))
        demand = WindowDemand.from_settings(self.settings)
        self.windows: WindowSet = make_windows(tokens, demand, provider="text", tokenizer_digest=TOKENIZER)

    def write(self) -> Campaign:
        """State, model files, calibration and all reports."""
        for path, value in {
            self.run.settings: self.settings.to_json(),
            self.run.scenarios: self.manifest.to_json(),
            self.run.policy: self.policy.to_json(),
            self.run.tuned_edit_params: {"schema": "tuned_edit_params_v1"},
            self.run.model_revisions: {"models": {MODEL.id: {"revision": MODEL.source.revision}}},
            self.run.source_repo: SOURCE,
            self.run.plan: self.plan.to_json(),
            self.model.profile: self.paper.profile(MODEL.id, MODEL.source.revision),
            self.model.windows / "schedule.json": self.windows.document(),
            self.run.analysis / "memory.json": {"peak": 1},
        }.items():
            write_json(path, value)
        self.run.presets.mkdir()
        self.run.preset(MODEL.name).write_text("drift_band: {}\n")
        self.model.calibration.mkdir(parents=True)
        matrices = encoded(self.paper.matrices(None, self.policy))
        (self.model.calibration / "spectral_records.json").write_bytes(matrices)
        for run in range(1, self.runs + 1):
            place = self.model.calibration / f"run_{run}"
            records = self.records(None, run)
            write_json(place / "records.json", records.to_json())
            write_json(place / "baseline_report.json", _baseline_report(records))
            heard = self.paper.activations(None, records, self.windows.run(run))
            (place / "activation_records.json").write_bytes(encoded(heard))
        for step in self.plan.steps_of(StepType.EVALUATE):
            scenario = self.plan.scenario(str(step.scenario))
            write_json(self.model.variant(scenario.id) / "variant.json", self.paper.variant(scenario))
            for run in step.runs:
                self.report(scenario, run)
        return self

    def report(self, scenario: Scenario, run: int, again: float | None = None) -> None:
        """One report with its records and runtime manifest.

        Args:
            again: where the baseline was scored again in batches of 8, by how much its losses moved, nats per token.
        """
        losses, theirs = self.records(scenario, run), self.records(None, run)
        place = self.model.report(scenario.id, scenario.category.value, run)
        heard_at, baseline_path = None, f"reports/calibration/run_{run}/records.json"
        if again is not None:
            beside = place.relative_to(self.model.root)
            heard_at = (beside / "baseline_activation_records.json").relative_to("reports").as_posix()
            baseline_path = (beside / "baseline_records.json").as_posix()
            losses, theirs = (_in_batches_of_8(one, shift) for one, shift in ((losses, 0.0), (theirs, again)))
            write_json(self.model.root / baseline_path, theirs.to_json())
        blocks, files = guards(self.paper, self.policy, scenario, self.windows.run(run), losses, theirs, heard_at)
        subject = RecordFile("records.json", pretty_json(losses.to_json()))
        baseline = RecordFile(baseline_path, (self.model.root / baseline_path).read_bytes())
        meta = ReportMeta(
            MODEL.id,
            MODEL.name,
            scenario.id,
            scenario.category.value,
            scenario.strictness.value,
            run,
            41 + run,
            self.plan.digest(),
        )
        report = build_report(
            meta=meta,
            subject=subject,
            baseline=baseline,
            policy=self.policy,
            guards=blocks,
            guards_order=SETTINGS.guards_order,
            dataset={"provider": "text", "seq_len": 128, "tokens_available": self.windows.text_tokens},
            provenance={
                "tokenizer_sha256": TOKENIZER,
                "code": {"commit": SOURCE["commit"], "dirty": SOURCE["dirty"]},
                "determinism": self.settings.determinism,
                "provider_digest": provider_digest(losses.windows_digest, TOKENIZER),
            },
            edit={"name": scenario.id, **self.paper.variant(scenario)["metadata"]},
            generated_at=NOW,
            bca=bca_interval(*paired_differences(losses, theirs), seed=losses.seed, replicates=2000),
        )
        data = pretty_json(report)
        place.mkdir(parents=True, exist_ok=True)
        (place / "evaluation.report.json").write_bytes(data)
        (place / "records.json").write_bytes(subject.data)
        for name, figures in files.items():
            (place / name).write_bytes(figures)
        write_json(place / "runtime.manifest.json", runtime_of(data, self.run.preset(MODEL.name)))

    def records(self, scenario: Scenario | None, run: int) -> WindowRecords:
        """Invented losses; the same windows give the same baseline losses."""
        schedule = self.windows.run(run)
        draw = random.Random(run)  # noqa: S311 - test data
        losses, predicted = [], self.windows.predicted
        for number, arm in schedule.in_order():
            baseline, noise = predicted * draw.gauss(3.2, 0.3), draw.gauss(0, 0.002)
            broken = scenario is not None and scenario.id == "nan_injection"
            shift = 0.0 if scenario is None or broken else SHIFTS[scenario.id] + noise
            losses.append(
                WindowLoss(
                    id=number,
                    arm=arm,
                    tokens_sha256=window_digest(self.windows.tokens[number]),
                    predicted_tokens=predicted,
                    nll_sum=None if broken else baseline + predicted * shift,
                    reason="nan" if broken else None,
                )
            )
        return WindowRecords(
            model=MODEL.name,
            side="subject" if scenario else "baseline",
            scenario=scenario.id if scenario else None,
            run=run,
            seed=schedule.seed,
            windows_digest=self.windows.run_digest(schedule),
            checkpoint_digest=self.paper.subject(scenario).digest(),
            compute=Compute(device="cpu", dtype="float32", attention="eager", batch=16),
            versions={"torch": "2"},
            windows=tuple(losses),
        )

    def context(self, type_: StepType, home: Path | None = None, **changes: Any) -> StepContext:
        """What a campaign step gets."""
        settings = self.settings.model_copy(update=changes)
        home_ = Home(home or self.run.root.parent / "home")
        return StepContext(self.run, self.plan, settings, self.plan.step(type_.value), home_)

    def finish(self) -> Campaign:
        """Compile the verdict."""
        compile_verdict_step(self.context(StepType.COMPILE_VERDICT))
        return self


def _in_batches_of_8(records: WindowRecords, shift: float) -> WindowRecords:
    windows = tuple(
        window.model_copy(
            update={"nll_sum": None if window.nll_sum is None else window.nll_sum + window.predicted_tokens * shift}
        )
        for window in records.windows
    )
    compute = records.compute.model_copy(update={"batch": 8})
    return records.model_copy(update={"windows": windows, "compute": compute})


def _manifest() -> Manifest:
    """The shipped scenarios for which there are invented losses, whatever else is shipped."""
    manifest = parse_as(Manifest, shipped("scenarios_core.json"), "scenarios_core.json")
    known = {*SHIFTS, "nan_injection"}
    return manifest.model_copy(update={"scenarios": tuple(_as_made(s) for s in manifest.scenarios if s.id in known)})


def _as_made(scenario: Scenario) -> Scenario:
    """With the edit that `Model.edit` makes, whatever is shipped."""
    if isinstance(scenario.generation, EditGeneration):
        generation = scenario.generation.model_copy(update={"edit_spec": SPEC})
        return scenario.model_copy(update={"generation": generation})
    return scenario


def runtime_of(report: bytes, preset: Path) -> dict[str, Any]:
    """The runtime manifest of a report."""
    name = "evaluation.report.json"
    return {
        "manifest_version": 1,
        "generated_at_utc": NOW,
        "verifier_contract_version": "runtime-manifest-v1",
        "report": {"path": name, "filename": name, "sha256": sha256_bytes(report)},
        "config": {"path": f"presets/{preset.name}", "sha256": sha256_file(preset), "source": "file"},
        "execution_mode": "host-bypass",
        "runtime": {
            "image_ref": "none",
            "image_digest": None,
            **dict.fromkeys(("container_execution", "allow_network", "allow_remote_code"), False),
            "allow_third_party_plugins": False,
        },
        "context": {},
    }


def _baseline_report(records: WindowRecords) -> dict[str, Any]:
    metric = {}
    for arm in ARMS:
        windows = records.arm(arm)
        metric[arm] = math.exp(sum(w.nll_sum or 0 for w in windows) / sum(w.predicted_tokens for w in windows))
    return {
        "schema": "evpack_baseline_report_v1",
        "meta": {"model_id": MODEL.id, "model_name": MODEL.name, "run": records.run, "seed": records.seed},
        "primary_metric": {"kind": "ppl_causal", **metric, "drift": metric["final"] / metric["preview"]},
        "dataset": {
            "tokenizer_sha256": TOKENIZER,
            "provider": "text",
            "seq_len": 128,
            "windows": {"preview": 16, "final": 16},
            "windows_digest": records.windows_digest,
        },
        "compute": records.compute.model_dump(),
        "checkpoint_digest": records.checkpoint_digest,
        "records": {"path": "records.json", "sha256": sha256_bytes(pretty_json(records.to_json()))},
    }


def _plan(manifest: Manifest, settings: Settings, paper: Model) -> CampaignPlan:
    def step(type_: StepType, scenario: Scenario | None = None, runs: int = 0) -> StepPlan:
        name, model = (scenario.id if scenario else None), MODEL.name
        return StepPlan(
            id=step_id(type_, model, name),
            type=type_,
            model=model,
            scenario=name,
            runs=tuple(range(1, runs + 1)),
            edit=paper.edit(scenario) if scenario and type_ is StepType.CREATE else None,
        )

    counts = {Category.CLEAN: settings.clean_edit_runs, Category.STRESS: 2, Category.ERROR_INJECTION: 1}
    last = (StepType.COMPILE_VERDICT, StepType.BUILD_PACK, StepType.VERIFY_PACK)
    steps = (
        step(StepType.CALIBRATE, runs=settings.drift_calibration_runs),
        *(step(StepType.CREATE, scenario) for scenario in manifest.scenarios),
        *(step(StepType.EVALUATE, scenario, counts[scenario.category]) for scenario in manifest.scenarios),
        *(StepPlan(id=type_.value, type=type_) for type_ in last),
    )
    named = {"suite": "fixture", "evpack_version": "0.1.0", "models": (MODEL,), "scenarios": manifest.scenarios}
    return campaign_plan(steps, settings, **named)

"""How long steps take: by formulas over a model's shape and a host's rates, or as a finished campaign measured them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evpack.catalog.edit_spec import ResolvedEdit, parse_scope
from evpack.catalog.scenarios import ErrorGeneration
from evpack.catalog.supported import FAULT_TENSORS
from evpack.files import GB
from evpack.plan.model import CampaignPlan, StepPlan, StepType
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.state import read_attempts
from studies.scheduling.shapes import BYTES, Shape, weights_gb
from studies.scheduling.tasks import Duration, Durations

EDIT_BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "results" / "edits.json"
"""Measured rates of the edits, MB/s of a model's bytes on one core."""


def edit_rates() -> dict[str, float]:
    """GB/s by edit family, and the gain of one pass over single edits as ``pass``, from the committed benchmark.

    Raises:
        KeyError: when the benchmark lacks a row.
    """
    rows = {row["name"]: row for row in json.loads(EDIT_BENCHMARK.read_text(encoding="utf-8"))["rows"]}
    rates = {}
    for family in ("quant_rtn", "fp8_quant", "magnitude_prune"):
        row = next(row for name, row in rows.items() if name.startswith(f"{family}:") and row["unit"] == "MB/s")
        rates[family] = row["value"] / 1000
    svd = next(row for name, row in rows.items() if name.startswith("lowrank_svd"))
    rates["lowrank_svd"] = 4096 * 14336 * BYTES / GB / svd["value"]
    batch = next(row for name, row in rows.items() if name.startswith("batch of"))
    return {**rates, "pass": batch["value"] / batch["reference"]}


@dataclass(frozen=True)
class Host:
    """Rates of a server with 80 GB devices. Assumed, except the edits' rates, which are this project's benchmark."""

    start_s: float = 12.0
    """Process, imports, and the first use of a device."""
    load_gb_s: float = 3.0
    """Weights from local NVMe storage onto devices."""
    scoring_tflops: float = 250.0
    """bfloat16 arithmetic of teacher-forced scoring, TFLOP/s: a quarter of what the device promises. Layers lie one
    after the other on a model's devices, so several devices are no faster than one."""
    hash_gb_s: float = 1.0
    """SHA-256 and the scan for non-finite numbers, on one core."""
    cpu_slots_per_device: int = 12
    """Slots of the pool `cpu`; such servers have 12 to 16 cores a device."""
    closing_s: float = 5.0
    """Verdict, pack and verification, each."""
    edit_rates_gb_s: Mapping[str, float] = field(default_factory=edit_rates)
    """Of one core, by edit family; under `pass` the time of one pass over that of single edits."""


def by_formula(plan: CampaignPlan, settings: Settings, shapes: Mapping[str, Shape], host: Host) -> Durations:
    """Durations from shapes.

    Args:
        shapes: by model id.
    """
    return _Formula(plan, settings, shapes, host)


@dataclass(frozen=True)
class _Formula:
    plan: CampaignPlan
    settings: Settings
    shapes: Mapping[str, Shape]
    host: Host

    def __call__(self, step: StepPlan) -> Duration:
        if step.model is None:
            return Duration(self.host.closing_s)
        model = self.plan.model(step.model)
        shape = self.shapes[model.id]
        if step.type is StepType.SETUP_BASELINE:
            return Duration(self.host.start_s + model.weights_gb / self.host.hash_gb_s)
        if step.type is StepType.DERIVE_PRESET:
            return Duration(self.host.start_s)
        if step.type is StepType.CREATE:
            return self._create(step, shape)
        return Duration(self.loading_s(shape) + len(step.runs) * self.run_s(shape))

    def loading_s(self, shape: Shape) -> float:
        """Seconds until a model can score."""
        return self.host.start_s + weights_gb(shape) / self.host.load_gb_s

    def run_s(self, shape: Shape) -> float:
        """Seconds of one run: 2 x parameters x tokens operations (one multiplication and one addition per weight)."""
        tokens = (self.settings.preview_windows + self.settings.final_windows) * self.settings.seq_len
        return 2 * shape.parameters_used() * tokens / (self.host.scoring_tflops * 1e12)

    def edit_s(self, shape: Shape, edit: ResolvedEdit) -> float:
        """Seconds of one edit on one core."""
        return _scope_gb(shape, edit.scope) / self.host.edit_rates_gb_s[edit.edit_type]

    def _create(self, step: StepPlan, shape: Shape) -> Duration:
        model, edit = self.plan.model(step.model or ""), step.edit
        if edit is None:
            generation = self.plan.scenario(step.scenario or "").generation
            kind = generation.error_type if isinstance(generation, ErrorGeneration) else ""
            written = _fault_gb(shape, FAULT_TENSORS[kind])
            return Duration(self.host.start_s + written / self.host.hash_gb_s)
        if not model.batch_edits:
            return Duration(self.host.start_s + self.edit_s(shape, edit))
        others = self.plan.edits(model.name).values()
        whole = self.host.edit_rates_gb_s["pass"] * sum(self.edit_s(shape, other) for other in others)
        again = _scope_gb(shape, edit.scope) / self.host.hash_gb_s
        return Duration(self.host.start_s + again, shared=f"{step.model}.edits", shared_s=whole)


def measured(run: RunDir, plan: CampaignPlan) -> Durations:
    """Durations of a finished campaign: what the last attempt of each step took beyond waiting for devices."""
    seconds: dict[str, float] = {}
    for step in plan.steps:
        for record in read_attempts(run, step.id):
            if record["seconds"] is not None:
                seconds[step.id] = record["seconds"] - (record["leased"] or {}).get("waited_s", 0.0)
    return lambda step: Duration(seconds.get(step.id, 0.0))


def _scope_gb(shape: Shape, scope: str) -> float:
    """GB of the matrices that a scope names."""
    chosen = parse_scope(scope)
    total = 0
    for name, size in shape.tensors():
        parts = name.split(".")
        if len(size) != 2 or parts[1] != "layers":
            continue
        layer, feeds = int(parts[2]), parts[3] in ("mlp", "block_sparse_moe")
        if chosen.kind == "all" or feeds == (chosen.kind == "ffn"):
            inside = not chosen.layers or layer in chosen.layers
            if inside and (chosen.below is None or layer < chosen.below):
                total += size[0] * size[1]
    return total * BYTES / GB


def _fault_gb(shape: Shape, tensors: int | None) -> float:
    if tensors is None:
        return weights_gb(shape)
    largest = max(size[0] * size[-1] for _, size in shape.tensors() if len(size) == 2)
    return min(weights_gb(shape), tensors * largest * BYTES / GB)

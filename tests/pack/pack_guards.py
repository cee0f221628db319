"""Invented figures of a model's matrices and activations, and the guard blocks that the project makes of them."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from evpack.catalog.edit_spec import ResolvedEdit, parse_scope
from evpack.catalog.policy import Policy
from evpack.catalog.scenarios import Category, Scenario
from evpack.checkpoint.contents import Contents, TensorRecord
from evpack.checkpoint.scope import place, select
from evpack.data.windows import RunWindows
from evpack.evaluation.records import WindowRecords
from evpack.files import canonical_json, sha256_bytes
from evpack.guards import chain, invariants_assess
from evpack.guards.hooks_records import ActivationRecords, ModuleActivations, evenly_spaced
from evpack.guards.spectral_records import Collapse, MatrixRecord, SpectralRecords, matrix_tensors

ORDER = ("invariants", "spectral", "rmt", "variance", "invariants")
CONFIG = {"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 1, "tie_word_embeddings": True}
CONTRACT = {"type": "invented"}
BLOCK = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
BLOCK += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
BROKEN = "model.layers.0.self_attn.q_proj.weight"
SCALED = "model.layers.0.mlp.down_proj.weight"
SPEC = "quant_rtn:4:128:ffn"
MOVES = {"quant_clean": 0.002, "prune_clean": 0.004, "prune_50pct_stress": 0.08, "scale_explosion": math.log(100)}
"""Ln of sigma over the baseline's for every changed matrix."""


@dataclass(frozen=True)
class Model:
    """A model of some layers, on paper."""

    layers: int = 1

    @cached_property
    def contents(self) -> Contents:
        """Tensors of 8 x 8, norms of 8."""
        names = ["model.embed_tokens", "model.norm"]
        names += [f"model.layers.{layer}.{part}" for layer in range(self.layers) for part in BLOCK]
        return Contents(
            CONFIG | {"num_hidden_layers": self.layers},
            {
                f"{name}.weight": TensorRecord(
                    dtype="BF16", shape=(8,) if "norm" in name else (8, 8), sha256=_hex(name)
                )
                for name in names
            },
        )

    def profile(self, model_id: str, revision: str | None) -> dict[str, Any]:
        """model_profile.json."""
        return {
            "schema": "evpack_model_profile_v1",
            "model_id": model_id,
            "revision": revision,
            "weights_bytes": 1000,
            "checkpoint_digest": self.contents.digest(),
            "config": self.contents.config(),
            "tensors": {name: record.model_dump(mode="json") for name, record in self.contents.tensors.items()},
        }

    def edit(self, scenario: Scenario) -> ResolvedEdit | None:
        """The plan's edit: of all feed-forward matrices."""
        if scenario.category is Category.ERROR_INJECTION:
            return None
        return ResolvedEdit(spec=SPEC, edit_type="quant_rtn", scope="ffn", bits=4, group_size=128)

    def variant(self, scenario: Scenario) -> dict[str, Any]:
        """variant.json."""
        fault = scenario.category is Category.ERROR_INJECTION
        changed = self._changed(scenario)
        return {
            "schema": "evpack_variant_v1",
            "scenario": scenario.id,
            "kind": "error" if fault else "edit",
            "baseline_digest": self.contents.digest(),
            "changed": {
                name: {"before_sha256": _hex(name.removesuffix(".weight")), "after_sha256": record.sha256}
                | {"dtype": record.dtype, "shape": list(record.shape)}
                for name, record in changed.items()
            },
            "removed": [],
            "config_overrides": {},
            "declaration": None if fault else {"tensors": self._edited(), "edit_type": "quant_rtn"},
            "metadata": {"error_type": scenario.id} if fault else self._told(scenario),
        }

    def _told(self, scenario: Scenario) -> dict[str, Any]:
        edit = self.edit(scenario)
        assert edit is not None
        return {key: getattr(edit, key) for key in ("edit_type", "spec", "scope", "bits", "group_size")}

    def subject(self, scenario: Scenario | None) -> Contents:
        """The variant, or the baseline without a scenario."""
        return self.contents if scenario is None else self.contents.overlaid(self._changed(scenario), (), {})

    def matrices(self, scenario: Scenario | None, policy: Policy) -> SpectralRecords:
        """Figures of all matrices, or of those that a scenario changed."""
        contents = self.subject(scenario)
        names = matrix_tensors(contents, policy) if scenario is None else list(self._changed(scenario))
        return SpectralRecords(
            side="subject" if scenario else "baseline",
            checkpoint_digest=contents.digest(),
            contract=CONTRACT,
            matrices={name: self._matrix(contents.tensors[name], name, scenario) for name in names},
        )

    def activations(self, scenario: Scenario | None, losses: WindowRecords, run: RunWindows) -> ActivationRecords:
        """Figures of eight windows of a run."""
        ids = [window for window, _ in run.in_order()]
        windows = tuple(ids[position] for position in evenly_spaced(len(ids), 8))
        return ActivationRecords(
            side="subject" if scenario else "baseline",
            run=run.run,
            windows_digest=losses.windows_digest,
            checkpoint_digest=losses.checkpoint_digest,
            windows=windows,
            contract=CONTRACT,
            modules={name.removesuffix(".weight"): _module(name, scenario, run.run) for name in self.contents.names()},
        )

    def _changed(self, scenario: Scenario) -> dict[str, TensorRecord]:
        names = {"nan_injection": [BROKEN], "scale_explosion": [SCALED]}.get(scenario.id)
        if names is None:
            names = self._edited()
        old = self.contents.tensors
        return {name: old[name].model_copy(update={"sha256": _hex(name + scenario.id)}) for name in names}

    def _edited(self) -> list[str]:
        return [weight.name for weight in select(self.contents, parse_scope("ffn"))]

    def _matrix(self, record: TensorRecord, name: str, scenario: Scenario | None) -> MatrixRecord:
        sigma = 1.0 + random.Random(name).random()  # noqa: S311 - test data
        factor = 1.0 if scenario is None else math.exp(MOVES.get(scenario.id, 0.0))
        broken = scenario is not None and scenario.id == "nan_injection"
        whole = Collapse(eligible=8, collapsed=0)
        return MatrixRecord(
            dtype=record.dtype,
            shape=(8, 8),
            tensor_sha256=record.sha256,
            sigma=None if broken else sigma * factor,
            frobenius=None if broken else 1.7 * sigma * factor,
            rows=whole,
            columns=whole,
        )


def guards(
    model: Model,
    policy: Policy,
    scenario: Scenario,
    run: RunWindows,
    losses: WindowRecords,
    baseline: WindowRecords,
    heard_at: str | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Blocks of a report by guard, and files of figures to stand beside it.

    Args:
        heard_at: where the baseline's activations stand below reports/, where it was scored again.
    """
    contents = model.subject(scenario)
    declared = chain.Declaration.of(model.edit(scenario), model.contents, clean=scenario.category is Category.CLEAN)
    broken = invariants_assess.finite_findings({BROKEN: 1}) if scenario.id == "nan_injection" else []
    declaration = model.variant(scenario)["declaration"]
    post = invariants_assess.assess(contents, model.contents, declaration, broken)
    matrices = model.matrices(scenario, policy), model.matrices(None, policy)
    heard = model.activations(scenario, losses, run), model.activations(None, baseline, run)
    files = {"spectral_records.json": encoded(matrices[0]), "activation_records.json": encoded(heard[0])}

    def places(name: str, path: str, other: Any) -> dict[str, Any]:
        theirs = {"path": f"reports/{path}", "sha256": sha256_bytes(encoded(other))}
        return {"records": {"subject": {"path": name, "sha256": sha256_bytes(files[name])}, "baseline": theirs}}

    listened = places(
        "activation_records.json", heard_at or f"calibration/run_{run.run}/activation_records.json", heard[1]
    )
    if heard_at is not None:
        files[heard_at.rpartition("/")[2]] = encoded(heard[1])
    blocks = {
        "invariants": invariants_assess.report_block(invariants_assess.reference_result(model.contents), post),
        "spectral": chain.spectral_block(*matrices, policy, declared)
        | places("spectral_records.json", "calibration/spectral_records.json", matrices[1]),
        "rmt": chain.rmt_block(*heard, policy, declared) | listened,
        "variance": chain.variance_block(*heard, policy, lambda _: None) | listened,
    }
    return blocks, files


def encoded(records: SpectralRecords | ActivationRecords) -> bytes:
    return canonical_json(records.to_json())


def _module(name: str, scenario: Scenario | None, run: int) -> ModuleActivations:
    baseline = _baseline_module(name, run)
    if scenario is None:
        return baseline
    if scenario.id == "nan_injection":
        return baseline.model_copy(update={"edge_risk": (None,) * 8, "mean_square": (None,) * 8})
    factor = math.exp(0.1 * MOVES[scenario.id])
    moved = {what: tuple(factor * value for value in getattr(baseline, what)) for what in ("edge_risk", "mean_square")}
    return baseline.model_copy(update=moved)


@cache
def _baseline_module(name: str, run: int) -> ModuleActivations:
    draw = random.Random(f"{name} {run}")  # noqa: S311 - test data
    where = place(name, 1 if "norm" in name else 2)
    return ModuleActivations(
        kind="embedding" if "embed" in name else "norm" if "norm" in name else "linear",
        target="ffn" if where and where.part == "ffn" and where.role == "down" else None,
        m=128,
        n=8,
        edge_risk=tuple(round(0.5 + draw.random(), 9) for _ in range(8)),
        mean_square=tuple(round(1.0 + 0.1 * draw.random(), 9) for _ in range(8)),
    )


@cache
def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""What a model is tried with: harmless changes, clean edits, and damage at every place it can be put."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evpack.catalog.edit_spec import EDIT_TYPES, ResolvedEdit, parse_edit_spec, resolve_edit
from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.scenarios import (
    Category,
    EditGeneration,
    ErrorGeneration,
    Manifest,
    Scenario,
    Strictness,
)
from evpack.catalog.tuned import TunedParams
from evpack.checkpoint.reader import Checkpoint
from evpack.checkpoint.scope import placements
from evpack.edits import apply_edit
from evpack.faults.driver import inject, injection_for
from evpack.faults.injection import Injection, Victim, in_block, projections
from evpack.faults.noise import rmt_norm_noise
from evpack.faults.scaling import EXPLOSION, MODERATE, scaled
from evpack.guards.hooks_records import evenly_spaced
from studies.harmless import half_ulp_noise, reshard
from studies.rotated import rotated_injection

Kind = Literal["noop", "mild", "clean", "required", "catastrophic", "informational", "pool"]
"""A pool subject is evaluated on every run, for the coverage of intervals; it enters no rate."""
Make = Callable[[Checkpoint, Path], object]
_FIRST: tuple[Kind, ...] = ("clean", "informational", "catastrophic", "required", "pool", "mild")
"""Thresholds hang on the first of these."""
CATALOG = "scenarios.json"
_ROTATED = ("nan_injection", "inf_injection", "rank_collapse", "norm_collapse", "ve_mlp_scale_skew")
"""Faults placed at every block by renumbering the blocks."""
RESHARDED = 10
"""Every how-many-th no-op is a resharding; the others are noise."""


@dataclass(frozen=True)
class Subject:
    """One changed model and the runs it is evaluated on."""

    kind: Kind
    family: str
    """What is done: an edit type, a fault."""
    place: str
    """Where or with which seed or parameters."""
    scenario: Scenario
    runs: tuple[int, ...]
    make: Make
    edit: ResolvedEdit | None = None

    @property
    def id(self) -> str:
        """Names the subject's files."""
        return self.scenario.id


@dataclass(frozen=True)
class Counts:
    """How many subjects of each kind."""

    noop: int
    mild: int
    clean_runs: int
    """Runs of each tuned edit."""
    fault_runs: int
    """Runs of each fault over all its places together, at least."""
    places: int
    """Most places of one fault."""
    noise_seeds: int
    """Draws of the norm noise."""
    pools: bool
    """Whether some subjects are evaluated on every run."""


def subjects(baseline: Checkpoint, model_id: str, tuned: TunedParams, runs: int, counts: Counts) -> list[Subject]:
    """All subjects of a model, in the order in which they are worth having.

    Args:
        runs: runs of windows there are; a subject takes those after the previous one's.
    """
    catalog = parse_as(Manifest, shipped(CATALOG), CATALOG).scenarios
    take = _Runs(runs, 0)
    damage = [*_faults(baseline, catalog, take, counts), *_stress(catalog, take, counts)]
    clean = list(_clean(model_id, tuned, _Runs(runs, runs // 3), counts))
    harmless = sorted([*_noops(runs, counts.noop), *_mild(baseline, runs, counts.mild)], key=lambda s: s.id[-3:])
    pools = list(_pools(runs)) if counts.pools else []
    return sorted([*clean, *damage, *pools, *harmless], key=_turn)


def _turn(subject: Subject) -> int:
    """When a subject's turn comes; no-ops and mild changes share theirs, so that an interrupted study has of both."""
    return _FIRST.index("mild" if subject.kind == "noop" else subject.kind)


class _Runs:
    """Deals out runs of windows, round and round, so that subjects meet different windows."""

    def __init__(self, total: int, first: int) -> None:
        self._total, self._next = total, first

    def take(self, count: int) -> tuple[int, ...]:
        """The next runs; never one twice for the same subject."""
        count = min(count, self._total)
        found = tuple((self._next + k) % self._total + 1 for k in range(count))
        self._next = (self._next + count) % self._total
        return tuple(sorted(found))


def _noops(runs: int, count: int) -> Iterator[Subject]:
    for k in range(count):
        again = k % RESHARDED == RESHARDED - 1
        yield _noop(f"noop_{k:03}", k, (k % runs + 1,), work=reshard if again else half_ulp_noise)


def _noop(
    id_: str,
    seed: int,
    runs: tuple[int, ...],
    *,
    work: Callable[[Checkpoint, Path, str, int], None],
    kind: Kind = "noop",
) -> Subject:
    def make(baseline: Checkpoint, directory: Path) -> None:
        work(baseline, directory, id_, seed)

    return Subject(kind, work.__name__, f"seed {seed}", _harmless(id_, work.__name__), runs, make)


def _mild(baseline: Checkpoint, runs: int, count: int) -> Iterator[Subject]:
    """8 bits, fp8 and pruning up to 12 % of a random part of a random set of layers, in turn."""
    layers = sorted({place.layer for place in placements(baseline)})
    for k in range(count):
        draw = random.Random(f"mild {k}")  # noqa: S311
        chosen = sorted(draw.sample(layers, draw.randint(1, len(layers))))
        scope = f"{draw.choice(('ffn', 'attn', 'all'))}@layer={','.join(map(str, chosen))}"
        kind, entry = (
            ("quant_rtn", {"bits": 8, "group_size": draw.choice((0, 32))}),
            (
                "fp8_quant",
                {"format": draw.choice(("e4m3fn", "e5m2")), "scale": draw.choice(("none", "tensor", "channel"))},
            ),
            ("magnitude_prune", {"sparsity": round(draw.uniform(0.02, 0.12), 3)}),
        )[k % 3]
        edit = resolve_edit(parse_edit_spec(f"{kind}:clean:all"), {"status": "selected", "scope": scope, **entry})
        yield _edited("mild", _harmless(f"mild_{k:03}", kind), edit, ((k + runs // 2) % runs + 1,))


def _clean(model_id: str, tuned: TunedParams, take: _Runs, counts: Counts) -> Iterator[Subject]:
    """The edits that were tuned for the model."""
    for kind in EDIT_TYPES:
        entry = tuned.entry(kind, model_id)
        if entry is None or entry["status"] != "selected":
            continue
        edit = resolve_edit(parse_edit_spec(f"{kind}:clean:ffn"), entry)
        yield _edited("clean", _harmless(f"clean_{kind}", kind), edit, take.take(counts.clean_runs))


def _pools(runs: int) -> Iterator[Subject]:
    """From what changes nothing to what ruins: the shapes that paired differences have."""
    everywhere = tuple(range(1, runs + 1))
    yield _noop("pool_noop", 10_000, everywhere, kind="pool", work=half_ulp_noise)
    for kind, entry in (
        ("quant_rtn", {"bits": 8, "group_size": 0, "scope": "all"}),
        ("quant_rtn", {"bits": 4, "group_size": 32, "scope": "ffn"}),
        ("fp8_quant", {"format": "e5m2", "scale": "none", "scope": "ffn"}),
        ("magnitude_prune", {"sparsity": 0.12, "scope": "ffn"}),
        ("magnitude_prune", {"sparsity": 0.5, "scope": "all"}),
    ):
        edit = resolve_edit(parse_edit_spec(f"{kind}:clean:all"), {"status": "selected", **entry})
        value = next(entry[key] for key in ("bits", "format", "sparsity") if key in entry)
        yield _edited("pool", _harmless(f"pool_{kind}_{str(value).replace('.', '')}", kind), edit, everywhere)


def _stress(catalog: tuple[Scenario, ...], take: _Runs, counts: Counts) -> Iterator[Subject]:
    """The catastrophic edits, which must fail, and the milder ones, which may be noticed."""
    for scenario in catalog:
        if scenario.category is Category.STRESS and isinstance(scenario.generation, EditGeneration):
            kind: Kind = "catastrophic" if scenario.strictness is Strictness.MUST_FAIL else "informational"
            edit = resolve_edit(parse_edit_spec(scenario.generation.edit_spec), None)
            yield _edited(kind, scenario, edit, take.take(counts.fault_runs))


def _faults(baseline: Checkpoint, catalog: tuple[Scenario, ...], take: _Runs, counts: Counts) -> Iterator[Subject]:
    for scenario in catalog:
        if not isinstance(scenario.generation, ErrorGeneration):
            continue
        error = scenario.generation.error_type
        places = _places(baseline, error, counts)
        if error != "rmt_norm_noise":
            places = [places[k] for k in evenly_spaced(len(places), counts.places)]
        kind: Kind = "informational" if scenario.strictness is Strictness.INFORMATIONAL else "required"
        for number in range(max(counts.fault_runs, len(places))):
            index = number % len(places)
            own = scenario.model_copy(update={"id": f"{scenario.id}_{index:02}_{number // len(places)}"})
            yield _damaged(kind, error, own, *places[index], take.take(1))


def _damaged(
    kind: Kind,
    error: str,
    scenario: Scenario,
    place: str,
    decide: Callable[[Checkpoint], Injection],
    runs: tuple[int, ...],
) -> Subject:
    """A fault on one run: an error injection has one report."""

    def make(baseline: Checkpoint, directory: Path) -> object:
        return inject(baseline, error, decide(baseline), directory, scenario=scenario.id)

    return Subject(kind, error, place, scenario, runs, make)


def _places(baseline: Checkpoint, error: str, counts: Counts) -> list[tuple[str, Callable[[Checkpoint], Injection]]]:
    """Every distinct place of a fault: its name, and the fault there."""
    if error == "rmt_norm_noise":
        return [
            (f"seed {seed}", lambda checkpoint, seed=seed: rmt_norm_noise(Victim(checkpoint), seed))
            for seed in range(counts.noise_seeds)
        ]
    down = projections(baseline, "ffn", "down")
    layers = sorted({place.layer for place in down})
    if error == "scale_explosion":
        return [
            (
                place.name,
                lambda _, place=place: Injection((scaled(place, EXPLOSION),), parameters={"scale_factor": EXPLOSION}),
            )
            for place in down
        ]
    if error == "spectral_moderate_scale":
        return [
            (
                f"block {layer}",
                lambda _, layer=layer: Injection(tuple(scaled(p, MODERATE) for p in in_block(down, layer))),
            )
            for layer in layers
        ]
    if error not in _ROTATED:
        return [("canonical", lambda checkpoint: injection_for(error, Victim(checkpoint)))]
    found: dict[tuple[tuple[str, ...], str], tuple[str, Callable[[Checkpoint], Injection]]] = {}
    for by in range(len(layers)):
        injection = rotated_injection(baseline, error, by)
        key = (tuple(sorted(change.name for change in injection.changes)), str(by % 2 if "skew" in error else ""))
        found.setdefault(key, (f"from block {by}", lambda checkpoint, by=by: rotated_injection(checkpoint, error, by)))
    return list(found.values())


def _harmless(id_: str, what: str) -> Scenario:
    """A scenario that must pass, as clean ones do."""
    return Scenario(
        id=id_,
        category=Category.CLEAN,
        failure_class=f"study.{what}",
        strictness=Strictness.MUST_PASS,
        generation=EditGeneration(kind="edit", edit_spec="quant_rtn:clean:ffn", version="clean"),
    )


def _edited(kind: Kind, scenario: Scenario, edit: ResolvedEdit, runs: tuple[int, ...]) -> Subject:
    def make(baseline: Checkpoint, directory: Path) -> object:
        return apply_edit(baseline, edit, directory, scenario=scenario.id)

    parameters = edit.model_dump(
        include={"bits", "group_size", "format", "sparsity", "rank", "scale", "scope"}, exclude_none=True
    )
    return Subject(
        kind, edit.edit_type, " ".join(f"{k} {v}" for k, v in parameters.items()), scenario, runs, make, edit
    )

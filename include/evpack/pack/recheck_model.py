"""What a pack says about one model: its profile, the schedule of its windows, calibration runs, variants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evpack.catalog.floors import predicted_tokens
from evpack.catalog.scenarios import Category
from evpack.errors import EvidenceError, IntegrityError
from evpack.evaluation.noop import NOOP_FILE, noop_digest, noop_shift
from evpack.evaluation.overhead import BARE_FILE, Overhead
from evpack.evaluation.records import ARMS, WindowRecords
from evpack.files import digest_json, sha256_bytes
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import layout
from evpack.pack.evidence import MALFORMED, Campaign, entry
from evpack.pack.figures import matrix_problems
from evpack.pack.papers import baseline_of, declaration_problems, metadata_problems
from evpack.plan.model import ModelPlan, StepType

_TOLERANCE = 1e-12
"""Relative: results are equal up to the last bits of exp and log of another C library."""


@dataclass
class ModelFacts:
    """What reports of a model must agree with."""

    baseline: str | None = None
    """Digest of the baseline."""
    seq_len: int | None = None
    predicted: int | None = None
    """Tokens that are predicted in a window."""
    provider: str | None = None
    """Where the text came from."""
    tokens: int | None = None
    """Tokens of the whole text, cut into windows."""
    tokenizer: str | None = None
    """Digest of the tokenizer that made the windows."""
    windows: dict[int, list[list[Any]]] = field(default_factory=dict)
    """``[[id, arm], ...]`` in order, by run."""
    seeds: dict[int, int] = field(default_factory=dict)
    noop_shift: float | None = None
    """Of the model's no-op, nats per predicted token; None where calibration left none."""
    overhead: Overhead | None = None
    """What guarding does to the baseline's loss; None where calibration did not measure it."""
    errors: list[str] = field(default_factory=list)
    """Everything that contradicts itself."""


def check_model(campaign: Campaign, model: ModelPlan, scenarios: Sequence[str]) -> ModelFacts:
    """Read what a pack says about a model.

    Args:
        scenarios: ids of scenarios that have a report.
    """
    facts = ModelFacts()
    tensors: Mapping[str, Any] = {}
    if _anything(campaign, model.name) or scenarios:
        try:
            tensors = _profile(campaign, model, facts)
            _schedule(campaign, model.name, facts)
            for step in campaign.plan.steps_of(StepType.CALIBRATE, model=model.name):
                for run in step.runs:
                    facts.errors += _calibration(campaign, model, run, facts)
            facts.errors += _noop(campaign, model.name, facts)
            facts.errors += _bare(campaign, model.name, facts)
            facts.errors += _matrices(campaign, model.name, facts)
            for scenario in scenarios:
                facts.errors += _variant(campaign, model.name, scenario, facts, tensors)
        except IntegrityError:
            raise  # the pack changed while it was read: nothing about its evidence can be said
        except EvidenceError as error:
            facts.errors.append(error.what)
        except MALFORMED as error:
            facts.errors.append(f"{model.name}: content of an unexpected form ({type(error).__name__}: {error})")
    return facts


def window_problems(records: WindowRecords, run: int, facts: ModelFacts, schedule: str) -> Iterator[str]:
    """Records must be of the windows that the schedule gave to their run, and their digest must say so."""
    if facts.windows.get(run) != [[window.id, window.arm] for window in records.windows]:
        yield f"its windows are not those that {schedule} gives to run {run}"
    if facts.seeds.get(run) != records.seed:
        yield f"its seed {records.seed} is not the one that {schedule} gives to run {run}"
    if facts.predicted is not None and any(window.predicted_tokens != facts.predicted for window in records.windows):
        yield f"other tokens are predicted in a window than the {facts.predicted} that {schedule} gives it"
    rows = [[window.id, window.arm, window.tokens_sha256] for window in records.windows]
    digest = digest_json({"run": records.run, "seed": records.seed, "seq_len": facts.seq_len, "windows": rows})
    if digest != records.windows_digest:
        yield "windows_digest of its records does not follow from their windows"


def _anything(campaign: Campaign, model: str) -> bool:
    return campaign.has(layout.model_state(model, "model_profile.json"))


def _profile(campaign: Campaign, model: ModelPlan, facts: ModelFacts) -> Mapping[str, Any]:
    name = layout.model_state(model.name, "model_profile.json")
    profile = campaign.document(name, "profile")
    facts.baseline = profile["checkpoint_digest"]
    for field_, expected in {"model_id": model.id, "revision": model.source.revision}.items():
        if profile[field_] != expected:
            facts.errors.append(f"{campaign.at(name)}: {field_} is {profile[field_]!r}, the plan says {expected!r}")
    if baseline_of(campaign, model.name).digest() != facts.baseline:
        facts.errors.append(f"{campaign.at(name)}: checkpoint_digest does not follow from config and tensors")
    tensors: Mapping[str, Any] = profile["tensors"]
    return tensors


def _schedule(campaign: Campaign, model: str, facts: ModelFacts) -> None:
    name = layout.model_state(model, "schedule.json")
    schedule = campaign.document(name, "schedule")
    body = {key: value for key, value in schedule.items() if key != "digest"}
    if digest_json(body) != schedule["digest"]:
        facts.errors.append(f"{campaign.at(name)}: its digest does not follow from its content")
    facts.seq_len, facts.tokenizer = schedule["seq_len"], schedule["tokenizer_digest"]
    facts.provider, facts.tokens = schedule["provider"], schedule["n_available"] * schedule["stride"]
    facts.predicted = predicted_tokens(schedule["seq_len"], schedule["stride"])
    for what, expected in {"seq_len": campaign.settings.seq_len, "stride": campaign.settings.advance}.items():
        if schedule[what] != expected:
            facts.errors.append(f"{campaign.at(name)}: {what} is {schedule[what]!r}, the settings ask for {expected}")
    seen: set[int] = set()
    for run in schedule["runs"]:
        ids = [*run["preview"], *run["final"]]
        if run["run"] in facts.windows or seen.intersection(ids) or len(set(ids)) < len(ids):
            facts.errors.append(f"{campaign.at(name)}: run {run['run']} shares windows with itself or another run")
        seen.update(ids)
        facts.windows[run["run"]] = [[i, arm] for arm in ARMS for i in run[arm]]
        facts.seeds[run["run"]] = run["seed"]


def _calibration(campaign: Campaign, model: ModelPlan, run: int, facts: ModelFacts) -> Iterator[str]:
    """A baseline report follows from the records beside it. A run that is not there is missed by those who need it."""
    place = f"reports/{model.name}/calibration/run_{run}/"
    if not campaign.has(place + layout.BASELINE_REPORT):
        return
    report = campaign.document(place + layout.BASELINE_REPORT, "baseline_report")
    data = campaign.read(place + layout.RECORDS)
    records = WindowRecords.parse(data, place + layout.RECORDS)
    about = {"model_id": model.id, "model_name": model.name, "run": run, "seed": records.seed}
    stated = {
        **{f"meta.{key}": (report["meta"][key], value) for key, value in about.items()},
        "records.sha256": (report["records"]["sha256"], sha256_bytes(data)),
        "checkpoint_digest": (report["checkpoint_digest"], facts.baseline),
        "dataset.windows_digest": (report["dataset"]["windows_digest"], records.windows_digest),
        "dataset.tokenizer_sha256": (report["dataset"]["tokenizer_sha256"], facts.tokenizer),
        "dataset.provider": (report["dataset"]["provider"], facts.provider),
        "dataset.seq_len": (report["dataset"]["seq_len"], facts.seq_len),
        "dataset.windows": (report["dataset"]["windows"], {arm: len(records.arm(arm)) for arm in ARMS}),
        "compute": (report["compute"], records.compute.model_dump()),
        "records' model": (records.model, model.name),
        "records' side": (records.side, "baseline"),
        "records' run": (records.run, run),
        "records' checkpoint_digest": (records.checkpoint_digest, facts.baseline),
    }
    for what, (given, expected) in stated.items():
        if given != expected:
            yield f"{place}{layout.BASELINE_REPORT}: {what} is {given!r}, expected {expected!r}"
    schedule = campaign.at(layout.model_state(model.name, "schedule.json"))
    yield from (f"{place}{layout.RECORDS}: {text}" for text in window_problems(records, run, facts, schedule))
    metric = report["primary_metric"]
    for arm in ARMS:
        windows = records.arm(arm)
        sums = [window.nll_sum for window in windows if window.nll_sum is not None]
        if len(sums) < len(windows) or not windows:
            yield f"{place}{layout.RECORDS}: {arm} losses are not finite or missing"
            continue
        expected = math.exp(math.fsum(sums) / sum(window.predicted_tokens for window in windows))
        if not math.isclose(metric[arm], expected, rel_tol=_TOLERANCE):
            yield f"{place}{layout.BASELINE_REPORT}: {arm} is {metric[arm]!r}, the records give {expected!r}"
    if not math.isclose(metric["drift"], metric["final"] / metric["preview"], rel_tol=_TOLERANCE):
        yield f"{place}{layout.BASELINE_REPORT}: drift is not final / preview"


def _noop(campaign: Campaign, model: str, facts: ModelFacts) -> Iterator[str]:
    """The shift of the no-op follows from its records and those of the baseline on the same windows."""
    place = f"reports/{model}/calibration/"
    if not campaign.has(place + NOOP_FILE):
        return
    noop = WindowRecords.parse(campaign.read(place + NOOP_FILE), place + NOOP_FILE)
    name = f"{place}run_{noop.run}/{layout.RECORDS}"
    if noop.checkpoint_digest != noop_digest(str(facts.baseline)):
        yield f"{place}{NOOP_FILE}: not of this model's baseline"
    facts.noop_shift = noop_shift(noop, WindowRecords.parse(campaign.read(name), name))


def _bare(campaign: Campaign, model: str, facts: ModelFacts) -> Iterator[str]:
    """What guarding does to the baseline's loss follows from its losses with guards and without."""
    place = f"reports/{model}/calibration/"
    if not campaign.has(place + BARE_FILE):
        return
    bare = WindowRecords.parse(campaign.read(place + BARE_FILE), place + BARE_FILE)
    name = f"{place}run_{bare.run}/{layout.RECORDS}"
    if bare.checkpoint_digest != facts.baseline or bare.model != model:
        yield f"{place}{BARE_FILE}: not of this model's baseline"
    schedule = campaign.at(layout.model_state(model, "schedule.json"))
    yield from (f"{place}{BARE_FILE}: {text}" for text in window_problems(bare, bare.run, facts, schedule))
    facts.overhead = Overhead.of(WindowRecords.parse(campaign.read(name), name), bare)


def _matrices(campaign: Campaign, model: str, facts: ModelFacts) -> Iterator[str]:
    """The figures of the baseline's matrices are of all matrices that its profile lists."""
    place = f"reports/{model}/calibration/{layout.SPECTRAL}"
    if campaign.has(place):
        records, baseline = campaign.parsed(place, SpectralRecords.parse), baseline_of(campaign, model)
        problems = matrix_problems(records, baseline, campaign.policy, digest=str(facts.baseline))
        yield from (f"{place}: {text}" for text in problems)


def _variant(
    campaign: Campaign, model: str, scenario: str, facts: ModelFacts, tensors: Mapping[str, Any]
) -> Iterator[str]:
    """A variant is a change of this model's baseline of the scenario's kind; a fault declares nothing."""
    name = layout.model_state(model, f"variants/{scenario}.json")
    variant, place = campaign.document(name, "variant"), campaign.at(name)
    fault = campaign.plan.scenario(scenario).category is Category.ERROR_INJECTION
    expected = {"scenario": scenario, "kind": "error" if fault else "edit", "baseline_digest": facts.baseline}
    for key, value in expected.items():
        if variant[key] != value:
            yield f"{place}: {key} is {variant[key]!r}, expected {value!r}"
    declared = declaration_problems(
        campaign.plan, baseline_of(campaign, model), model, scenario, variant["declaration"]
    )
    yield from (f"{place}: {text}" for text in declared)
    yield from (f"{place}: {text}" for text in metadata_problems(campaign.plan, model, scenario, variant["metadata"]))
    for tensor, change in variant["changed"].items():
        if change["before_sha256"] != entry(tensors.get(tensor), "sha256"):
            yield f"{place}: {tensor} was not {change['before_sha256']} in the baseline"
        elif change["before_sha256"] == change["after_sha256"]:
            yield f"{place}: {tensor} is listed as changed and is not"
    for tensor in variant["removed"]:
        if tensor not in tensors:
            yield f"{place}: {tensor} is removed, but the baseline never had it"

"""Baselines and subjects on paper, read from a pack: what they hold by profile and variant, without any weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evpack.catalog.edit_spec import parse_scope
from evpack.catalog.scenarios import Category
from evpack.checkpoint.contents import Contents, TensorRecord
from evpack.checkpoint.scope import select
from evpack.errors import BadInput, CheckpointError, EvidenceError
from evpack.files import Json
from evpack.guards.chain import Declaration
from evpack.pack import layout, schemas
from evpack.pack.evidence import Campaign
from evpack.plan.model import CampaignPlan

_TOLD = ("edit_type", "spec", "scope", "bits", "group_size", "format", "rank")
"""Of an edit, what a variant's metadata repeats."""


@dataclass(frozen=True)
class Subject:
    """A baseline with a variant laid over it."""

    contents: Contents
    digest: str
    declaration: Mapping[str, Any] | None
    """What the variant says that it means to change."""
    metadata: Mapping[str, Any]
    """How it was made, for people."""


def baseline_of(campaign: Campaign, model: str) -> Contents:
    """The baseline of a model.

    Raises:
        EvidenceError: when its profile is missing or malformed.
    """
    return campaign.parsed(layout.model_state(model, "model_profile.json"), _profile)


def subject_of(campaign: Campaign, model: str, scenario: str) -> Subject:
    """The subject of a scenario.

    Raises:
        EvidenceError: when profile or variant are missing or malformed.
    """
    baseline = baseline_of(campaign, model)

    def parse(data: bytes, name: str) -> Subject:
        variant = schemas.checked(data, name, "variant")
        changed = {
            tensor: TensorRecord(dtype=c["dtype"], shape=tuple(c["shape"]), sha256=c["after_sha256"])
            for tensor, c in variant["changed"].items()
        }
        contents = baseline.overlaid(changed, variant["removed"], variant["config_overrides"])
        return Subject(contents, contents.digest(), variant["declaration"], variant["metadata"])

    return campaign.parsed(layout.model_state(model, f"variants/{scenario}.json"), parse)


def excused(plan: CampaignPlan, baseline: Contents, model: str, scenario: str) -> Declaration:
    """What guards must excuse in a scenario's subject, by the plan's edit.

    Raises:
        EvidenceError: when the edit cannot be one of this model.
    """
    clean = plan.scenario(scenario).category is Category.CLEAN
    try:
        return Declaration.of(plan.edits(model).get(scenario), baseline, clean=clean)
    except (BadInput, CheckpointError) as error:
        raise EvidenceError(f"{model}: the plan's edit of {scenario} does not fit the model: {error.what}") from error


def declaration_problems(
    plan: CampaignPlan, baseline: Contents, model: str, scenario: str, declared: Mapping[str, Any] | None
) -> Iterator[str]:
    """A variant declares the tensors in the scope of the plan's edit, and a fault nothing."""
    edit = plan.edits(model).get(scenario)
    if edit is None:
        if declared is not None:
            yield "the plan has no edit here, yet the variant declares what it changed"
        return
    try:
        meant = [place.name for place in select(baseline, parse_scope(edit.scope))]
    except (BadInput, CheckpointError) as error:
        yield f"the plan's edit does not fit the model: {error.what}"
        return
    if declared is None or (declared.get("tensors"), declared.get("edit_type")) != (meant, edit.edit_type):
        yield f"its declaration is not that of the plan's edit ({edit.edit_type}, {len(meant)} tensors)"


def metadata_problems(plan: CampaignPlan, model: str, scenario: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    """What a variant tells people of how it was made is the plan's edit, or the scenario's error injection."""
    edit = plan.edits(model).get(scenario)
    if edit is None:
        expected: dict[str, Any] = {"error_type": scenario}
    else:
        expected = {key: getattr(edit, key) for key in _TOLD} | {"target_sparsity": edit.sparsity}
    for key, value in expected.items():
        if value is not None and metadata.get(key) != value:
            yield f"its metadata has {key} {metadata.get(key)!r}, the plan {value!r}"


def _profile(data: bytes, name: str) -> Contents:
    profile = schemas.checked(data, name, "profile")
    config: dict[str, Json] = profile["config"]
    records = {
        tensor: TensorRecord(dtype=t["dtype"], shape=tuple(t["shape"]), sha256=t["sha256"])
        for tensor, t in profile["tensors"].items()
    }
    return Contents(config, records)

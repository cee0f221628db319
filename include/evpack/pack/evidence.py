"""The frozen inputs of a packed campaign, parsed once; every check of its evidence starts from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from evpack.catalog.edit_spec import EditParameters, parse_edit_spec, resolve_edit
from evpack.catalog.loader import parse_as, shipped
from evpack.catalog.policy import Policy, resolve_policy
from evpack.catalog.scenarios import EditGeneration, Manifest
from evpack.catalog.suites import suite
from evpack.catalog.tuned import TunedParams
from evpack.errors import BadInput, EvidenceError
from evpack.evaluation.report import GUARD_FLAGS
from evpack.files import Json, digest_json, parse_json, portable
from evpack.pack import layout, provenance, schemas
from evpack.pack.inventory import Files
from evpack.pack.layout import Layout
from evpack.plan.model import CampaignPlan, with_lane_changes
from evpack.settings import Settings

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises on values that a schema let through; in a verifier that is the pack's fault, not a crash."""


_EDIT = ("edit_type", "spec", "scope", "status", *EditParameters.model_fields)
"""What of an edit decides how a variant is made."""
_MEASURED_BY = (
    *("spectral.scope", "spectral.norm_collapse.collapsed_below", "spectral.norm_collapse.eligible_above"),
    *("rmt.windows.", "variance."),
)
"""Limits that decide what is measured: which matrices, rows and windows, and which scales are tried on the losses."""
_KEPT = 24
"""Parsed files and the like kept at a time: what the reports of one scenario have in common."""
T = TypeVar("T")


@dataclass(frozen=True)
class Campaign:
    """What a campaign was planned to be, read from its pack."""

    files: Files
    layout: Layout
    plan: CampaignPlan
    settings: Settings
    policy: Policy
    """The limits it was judged by."""
    limits: Policy
    """The limits to judge by."""
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def other_limits(self) -> dict[str, str]:
        """By key, every limit that is not the one to judge by (where it comes from may be worded differently)."""
        found = {}
        for key in sorted(self.policy.thresholds.keys() | self.limits.thresholds.keys()):
            ours, theirs = (
                p.thresholds[key].value if key in p.thresholds else None for p in (self.limits, self.policy)
            )
            if ours != theirs:
                found[key] = f"{self.at(layout.POLICY)}: {key} is {theirs!r}, to be judged by is {ours!r}"
        return found

    def under_limits(self) -> Campaign | None:
        """The same campaign under the limits to judge by; None when these ask for other figures."""
        if any(key.startswith(_MEASURED_BY) for key in self.other_limits):
            return None
        return replace(self, policy=self.limits, _kept={})

    @cached_property
    def digests(self) -> tuple[str, str]:
        """Of the plan and of the policy, which every report names."""
        return self.plan.digest(), self.policy.digest()

    def at(self, name: str) -> str:
        """Where a file stands in this pack."""
        return self.layout.place(name)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.at(name) in self.files

    def read(self, name: str) -> bytes:
        """Bytes of a file by its layout v1 name.

        Raises:
            EvidenceError: when it is missing.
        """
        return _read(self.files, self.at(name))

    def parsed(self, name: str, parse: Callable[[bytes, str], T]) -> T:
        """A file that several reports need, parsed once as long as few others are asked for.

        Args:
            parse: takes bytes and place, always the same function for a name.

        Raises:
            EvidenceError: when the file is missing or malformed.
        """
        return self.kept(("parsed", name), lambda: parse(self.read(name), self.at(name)))

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is made once for several reports; the oldest of `_KEPT` things is forgotten. Nobody changes it.

        Args:
            key: stands for everything that the value depends on.
        """
        if key not in self._kept:
            value = make()
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = value
        found: T = self._kept[key]
        return found

    def document(self, name: str, schema: str | None = None) -> Json:
        """A parsed JSON file, held against a schema of `pack.schemas` when one is named.

        Raises:
            EvidenceError: when it is missing or malformed.
        """
        data, place = self.read(name), self.at(name)
        return parse_json(data, place) if schema is None else schemas.checked(data, place, schema)


def open_campaign(files: Files, where: Layout, limits: Policy | None) -> tuple[Campaign, list[str]]:
    """Parse the frozen inputs; returns them and every way in which they disagree (`Campaign.other_limits` apart).

    Args:
        limits: what to judge by; None means the installed package's limits for the campaign's tier and profile.

    Raises:
        EvidenceError: when they cannot be read, so that there is nothing to compare with.
    """
    at = where.place
    plan = CampaignPlan.parse(_read(files, at(layout.PLAN)), at(layout.PLAN))
    if (changes := at(layout.LANE_CHANGES)) in files:
        plan = with_lane_changes(plan, files[changes], changes)
    settings_data = _read(files, at(layout.SETTINGS))
    settings = Settings.parse(settings_data, at(layout.SETTINGS))
    policy = Policy.parse(_read(files, at(layout.POLICY)), at(layout.POLICY))
    try:
        manifest = parse_as(Manifest, _read(files, at(layout.SCENARIOS)), at(layout.SCENARIOS))
        expected = limits or resolve_policy(settings.tier, settings.profile)
    except BadInput as error:
        raise EvidenceError(error.what) from error
    campaign = Campaign(files, where, plan, settings, policy, expected)
    errors = []
    if digest_json(portable(parse_json(settings_data, at(layout.SETTINGS)))) != plan.settings_digest:
        errors.append(f"{at(layout.SETTINGS)}: not the settings that {at(layout.PLAN)} was made from")
    if manifest.scenarios != plan.scenarios:
        errors.append(f"{at(layout.SCENARIOS)}: not the scenarios of {at(layout.PLAN)}")
    if (policy.tier, policy.profile) != (settings.tier, settings.profile):
        errors.append(
            f"{at(layout.POLICY)}: tier {policy.tier}, profile {policy.profile}, but the campaign was set to "
            f"tier {settings.tier}, profile {settings.profile}"
        )
    return campaign, [*errors, *_edits(campaign), *_pins(campaign), *_provenance(campaign)]


def unusual(campaign: Campaign) -> Iterator[str]:
    """Guards left out, expectations that are not the shipped ones: allowed, but a reader should know."""
    plan = campaign.plan
    if absent := [name for name in GUARD_FLAGS if name not in campaign.settings.guards_order]:
        yield f"guards that the campaign did not run: {', '.join(absent)}"
    try:
        name = suite(plan.suite).scenarios
        shipped_ones = {scenario.id: scenario for scenario in parse_as(Manifest, shipped(name), name).scenarios}
    except BadInput:
        yield f"suite {plan.suite!r} is not a shipped one: its expectations are the campaign's own"
        return
    for scenario in plan.scenarios:
        if shipped_ones.get(scenario.id) != scenario:
            yield f"scenario {scenario.id}: its expectations are the campaign's own, not those of the shipped suite"
    if left_out := sorted(shipped_ones.keys() - {scenario.id for scenario in plan.scenarios}):
        yield f"scenarios of the shipped suite that the campaign left out: {', '.join(left_out)}"


def entry(value: Json, *keys: str) -> Any:
    """A nested value, None where the way to it breaks off."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _edits(campaign: Campaign) -> Iterator[str]:
    """The plan's edits are those that scenarios and tuned parameters ask for."""
    name = layout.TUNED
    tuned = TunedParams(campaign.document(name) if campaign.has(name) else {})
    for model in campaign.plan.models:
        for scenario, planned in campaign.plan.edits(model.name).items():
            generation = campaign.plan.scenario(scenario).generation
            where = f"{campaign.at(layout.PLAN)}: the edit of {scenario} on {model.name}"
            if not isinstance(generation, EditGeneration):
                yield f"{where} is of a scenario that has none"
                continue
            try:
                spec = parse_edit_spec(generation.edit_spec)
                meant = resolve_edit(spec, tuned.entry(spec.edit_type, model.id, model.name) if spec.clean else None)
            except (BadInput, *MALFORMED) as error:
                yield f"{where} cannot be resolved again: {error}"
                continue
            if wrong := [key for key in _EDIT if getattr(planned, key) != getattr(meant, key)]:
                yield f"{where} has other parameters than scenario and {campaign.at(name)} give: {', '.join(wrong)}"


def _pins(campaign: Campaign) -> Iterator[str]:
    """The plan's models have the revisions that the campaign pinned."""
    name = campaign.at(layout.REVISIONS)
    if not campaign.has(layout.REVISIONS):
        yield f"{name} is missing"
        return
    pins = entry(campaign.document(layout.REVISIONS), "models")
    for model in campaign.plan.models:
        pinned = entry(pins, model.id, "revision")
        if pinned != model.source.revision:
            yield f"{name}: {model.id} is pinned to {pinned!r}, the plan took {model.source.revision!r}"


def _provenance(campaign: Campaign) -> Iterator[str]:
    if campaign.has(layout.SOURCE):
        try:
            provenance.check_source_repo(campaign.read(layout.SOURCE), campaign.at(layout.SOURCE))
        except BadInput as error:
            yield error.what
    if campaign.has(layout.ENVIRONMENT):
        machine = campaign.document(layout.ENVIRONMENT)
        missing = {"recorded_at", "platform", "python_version"} - set(machine if isinstance(machine, dict) else ())
        if missing:
            yield f"{campaign.at(layout.ENVIRONMENT)} lacks {', '.join(sorted(missing))}"


def _read(files: Files, name: str) -> bytes:
    if name not in files:
        raise EvidenceError(f"{name} is missing")
    return files[name]

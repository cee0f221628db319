"""The thresholds a campaign is judged by: tier, then profile, then what a preset or configuration overrides.

No environment variable reaches a threshold. A policy is flat (dotted key to leaf), so that merging is an update and
every leaf carries where it comes from; `Policy.values` gives the nested form of a report's ``resolved_policy``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from evpack.errors import BadInput, EvidenceError
from evpack.files import digest_json, first_fault, parse_json

POLICY_SCHEMA: Final = "evpack_policy_v1"
_CONFIGURED = "override: configuration"
TIERS_SCHEMA = "evpack_tiers_v1"
EvidenceLevel = Literal["low", "medium", "high"]
LEVELS: tuple[EvidenceLevel, ...] = ("low", "medium", "high")

_RANGES = ("primary_metric.acceptance_range", "primary_metric.drift_band")
_POSITIVE = (
    *("metrics.pm_ratio.ratio_limit_base", "rmt.windows.count", "variance.calibration.windows"),
    *(f"{name}.{end}" for name in _RANGES for end in ("min", "max")),
)
_FRACTIONS = (
    "metrics.pm_ratio.min_token_fraction",
    "metrics.pm_ratio.min_tokens_tolerance",
    "metrics.pm_tail.quantile",
    "verdict.informational_min_signal_fraction",
)
_LARGEST = 2**53
"""Largest whole number of a threshold; JSON's have no end, and a float cannot hold every larger one."""
_GUARDS = ("spectral.", "rmt.", "variance.")
_SIGNAL_KINDS = frozenset({"gate_flip", "remediation", "detected_shift"})

Value = StrictBool | StrictInt | StrictFloat | StrictStr | list[StrictStr] | list[StrictFloat] | None


class Leaf(BaseModel):
    """One threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: Value
    origin: str = Field(min_length=1)
    """Which layer set it, and why."""


class Policy(BaseModel):
    """state/policy.json. Holds every key of the shipped tier data and no other, each with a value of its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["evpack_policy_v1"] = Field(default=POLICY_SCHEMA, alias="schema")
    tier: str
    profile: str
    thresholds: dict[str, Leaf]

    @classmethod
    def parse(cls, data: bytes, name: str = "policy.json") -> Policy:
        """Read a policy from bytes.

        Raises:
            EvidenceError: when it is malformed, lacks a key, knows one too many, or holds an impossible value.
        """
        value = parse_json(data, name)
        if isinstance(value, dict):
            value.setdefault("schema", None)  # the default is for those who make a policy, not for files
        try:
            policy = cls.model_validate(value)
        except ValidationError as error:
            raise EvidenceError(f"{name}: {first_fault(error)}") from error
        policy._check(name)
        return policy

    def number(self, key: str) -> float:
        """A numeric threshold."""
        value = self.thresholds[key].value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"policy key {key} is not a number: {value!r}")
        return float(value)

    def text(self, key: str) -> str:
        """A threshold that is a word."""
        return str(self.thresholds[key].value)

    def flag(self, key: str) -> bool:
        """A threshold that is a switch."""
        return self.thresholds[key].value is True

    def words(self, key: str) -> tuple[str, ...]:
        """A threshold that is a list of words."""
        value = self.thresholds[key].value
        return tuple(map(str, value)) if isinstance(value, list) else ()

    @property
    def acceptance(self) -> tuple[float, float]:
        """Smallest and largest acceptable ratio to the baseline, before hysteresis."""
        configured = self.thresholds["primary_metric.acceptance_range.max"].value
        key = "metrics.pm_ratio.ratio_limit_base" if configured is None else "primary_metric.acceptance_range.max"
        return self.number("primary_metric.acceptance_range.min"), self.number(key)

    @property
    def drift_band(self) -> tuple[float, float]:
        """Acceptable relative drift."""
        return self.number("primary_metric.drift_band.min"), self.number("primary_metric.drift_band.max")

    @property
    def replicates(self) -> int:
        """Draws of the bootstrap: the profile's number, and at least the tier's."""
        return int(max(map(self.number, ("metrics.bootstrap.replicates", "metrics.coverage.replicates"))))

    @property
    def evidence_cap(self) -> EvidenceLevel:
        """Highest evidence level a pack under this policy may claim."""
        return cast(EvidenceLevel, self.text("evidence.max_level"))

    def values(self) -> dict[str, Any]:
        """Nested plain values, as a report's ``resolved_policy`` holds them."""
        nested: dict[str, Any] = {}
        for key, leaf in sorted(self.thresholds.items()):
            *parents, last = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = list(leaf.value) if isinstance(leaf.value, list) else leaf.value
        return nested

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys as on disk."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_json(self.to_json())

    def _check(self, name: str) -> None:
        shipped = _shipped_kinds()
        for key in sorted(shipped.keys() ^ self.thresholds.keys()):
            raise EvidenceError(f"{name}: threshold {key!r} is {'missing' if key in shipped else 'unknown'}")
        for key, leaf in self.thresholds.items():
            if _kind(leaf.value) not in shipped[key]:
                kinds = " or ".join(sorted(shipped[key]))
                raise EvidenceError(f"{name}: threshold {key} is {leaf.value!r}, not a {kinds}")
            if isinstance(leaf.value, int) and abs(leaf.value) > _LARGEST:
                raise EvidenceError(f"{name}: threshold {key} is {leaf.value!r:.20}..., beyond {_LARGEST}")
        for key in _POSITIVE:
            value = self.thresholds[key].value
            if value is not None and self.number(key) <= 0:
                raise EvidenceError(f"{name}: threshold {key} is {value!r}, not positive")
        for key in _FRACTIONS:
            if not 0 <= self.number(key) <= 1:
                raise EvidenceError(f"{name}: threshold {key} is {self.number(key)!r}, not in 0..1")
        for label, (low, high) in (("acceptance range", self.acceptance), ("drift band", self.drift_band)):
            if low > high:
                raise EvidenceError(f"{name}: {label} is empty: minimum {low} above maximum {high}")
        if unknown := set(self.words("verdict.signal_kinds")) - _SIGNAL_KINDS:
            raise EvidenceError(f"{name}: unknown signal kind {sorted(unknown)[0]!r}")
        if self.evidence_cap not in LEVELS:
            raise EvidenceError(f"{name}: unknown evidence level {self.evidence_cap!r}")


def resolve_policy(tier: str, profile: str, overrides: Mapping[str, Any] | None = None) -> Policy:
    """The thresholds of a tier under a profile.

    Args:
        overrides: from a configuration, never from the environment: ``acceptance_range`` and ``drift_band``, each
            ``{min, max}`` or a pair (a missing half keeps what tier and profile say), and limits of `guard_limits`.

    Raises:
        BadInput: for an unknown tier or profile, or an override that is no range or no limit.
    """
    data = _tier_data()
    layers = [("all tiers", data["common"])]
    for what, name in (("tier", tier), ("profile", profile)):
        if name not in data[f"{what}s"]:
            raise BadInput(f"unknown {what} {name!r}", "known: " + ", ".join(data[f"{what}s"]))
        layers.append((f"{what} {name}", data[f"{what}s"][name]))
    thresholds = {
        key: Leaf(value=leaf["value"], origin=f"{layer}: {data['origins'][leaf['origin']]}")
        for layer, leaves in layers
        for key, leaf in leaves.items()
    }
    for name, value in (overrides or {}).items():
        thresholds |= _override(name, value)
    policy = Policy(tier=tier, profile=profile, thresholds=dict(sorted(thresholds.items())))
    try:
        policy._check("policy")
    except EvidenceError as error:
        raise BadInput(error.what, "give 0 < min <= max, and counts of 1 or more") from error
    return policy


def guard_limits() -> frozenset[str]:
    """Limits of guards that a configuration may set: numbers and switches, as ``guards.<guard>.<limit>``.

    What is only shown and decides nothing is no limit.
    """
    return frozenset(
        f"guards.{key}"
        for key, kinds in _shipped_kinds().items()
        if key.startswith(_GUARDS) and not kinds.isdisjoint({"number", "switch"}) and not _is_only_shown(key)
    )


def _guard_limit(name: str, value: Any) -> dict[str, Leaf]:
    key = name.removeprefix("guards.")
    (wanted,) = _shipped_kinds()[key] - {"null"}
    if _kind(value) != wanted:
        raise BadInput(
            f"{name} is {value!r}, not a {wanted}", "give true or false" if wanted == "switch" else "give a number"
        )
    if wanted == "number" and (not 0 <= value < math.inf or (_is_whole(key) and not isinstance(value, int))):
        raise BadInput(f"{name} is {value!r}", f"give a {'whole ' if _is_whole(key) else ''}number of 0 or more")
    return {key: Leaf(value=value, origin=_CONFIGURED)}


def _is_whole(key: str) -> bool:
    """Whether a number counts something, as all that is shipped for it does."""
    return all(isinstance(leaf["value"], int) for leaf in _shipped(key))


def _is_only_shown(key: str) -> bool:
    return any(leaf["origin"] == "shown" for leaf in _shipped(key))


def _shipped(key: str) -> list[dict[str, Any]]:
    """The key's leaves in all layers."""
    data = _tier_data()
    layers = (data["common"], *data["tiers"].values(), *data["profiles"].values())
    return [leaves[key] for leaves in layers if key in leaves]


def _override(name: str, value: Any) -> dict[str, Leaf]:
    if name in guard_limits():
        return _guard_limit(name, value)
    prefix = f"primary_metric.{name}"
    if prefix not in _RANGES:
        raise BadInput(f"policy override {name!r} is not allowed", "allowed: acceptance_range, drift_band, guards")
    if isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(("min", "max"), value, strict=True))
    if not isinstance(value, Mapping) or not value or not set(value) <= {"min", "max"}:
        raise BadInput(f"{name} is {value!r}", "give {min, max} or a pair of numbers")
    for end, number in value.items():
        if _kind(number) != "number":
            raise BadInput(f"{name}.{end} is {number!r}, not a number", "give 0 < min <= max")
    try:
        return {f"{prefix}.{end}": Leaf(value=float(n), origin=_CONFIGURED) for end, n in value.items()}
    except (ValidationError, OverflowError) as error:
        raise BadInput(f"{name} is {value!r}, not finite", "give 0 < min <= max") from error


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return "list"
    return "word"


@cache
def _tier_data() -> dict[str, Any]:
    path = resources.files("evpack.catalog") / "data" / "tiers.json"
    data: dict[str, Any] = parse_json(path.read_bytes(), "tiers.json")
    if data.get("schema") != TIERS_SCHEMA:
        raise EvidenceError(f"tiers.json: schema is {data.get('schema')!r}, expected {TIERS_SCHEMA!r}")
    return data


@cache
def _shipped_kinds() -> dict[str, frozenset[str]]:
    """Per key the kinds of value that the shipped data uses; null stands for a number that nobody set."""
    data = _tier_data()
    kinds: dict[str, set[str]] = {}
    for leaves in (data["common"], *data["tiers"].values(), *data["profiles"].values()):
        for key, leaf in leaves.items():
            kind = _kind(leaf["value"])
            kinds.setdefault(key, set()).update({"null", "number"} if kind == "null" else {kind})
    return {key: frozenset(found) for key, found in kinds.items()}

"""Limits that an operator's configuration files set in place of those of tier and profile.

Two files may, both YAML with `!include`: the profile's, ``runtime/profiles/<profile>.yaml`` below
INVARLOCK_CONFIG_ROOT, and on top of it PACK_CONFIG_FILE. Each holds ``primary_metric`` with ``acceptance_range`` and
``drift_band``, and ``guards`` with limits by guard (``spectral: {max_caps: 8}``); ``defaults`` (usually an include)
holds the same and yields to what stands beside it, limit by limit; either end of a range is a limit of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from evpack.catalog.policy import guard_limits
from evpack.errors import BadInput, MissingFile
from evpack.files import Json
from evpack.settings import Settings
from evpack.yaml_files import Reach, read_yaml

LIMITS = ("acceptance_range", "drift_band")
_MEND = "keep only primary_metric.acceptance_range, primary_metric.drift_band and limits of guards"


def policy_overrides(settings: Settings) -> dict[str, Any]:
    """What the configuration files set, as `policy.resolve_policy` takes it; empty without such files.

    Raises:
        MissingFile: a named file or directory is not there.
        BadInput: no plain YAML, an include that leaves the configuration's directory, something that is no limit.
    """
    found: dict[str, Any] = {}
    for file in _files(settings):
        found = _merged(found, _limits(read_yaml(file, reach_of(file, settings)), str(file)))
    return found


def reach_of(file: Path, settings: Settings) -> Reach:
    """Where the includes of a configuration file or preset must lie: below INVARLOCK_CONFIG_ROOT where the file does,
    else below its own directory.
    """
    root = Path(settings.config_root) if settings.config_root else None
    inside = root is not None and file.resolve().is_relative_to(root.resolve())
    return Reach(root if root is not None and inside else file.parent, settings.allow_config_include_outside)


def _files(settings: Settings) -> Iterator[Path]:
    root = Path(settings.config_root) if settings.config_root else None
    if root is not None:
        if not root.is_dir():
            raise MissingFile(f"INVARLOCK_CONFIG_ROOT {root} is no directory", "name a directory, or unset it")
        if (tiers := root / "runtime" / "tiers.yaml").exists():
            raise BadInput(f"{tiers}: tiers of one's own are not supported", "remove it; " + _MEND)
        profile = root / "runtime" / "profiles" / f"{settings.profile}.yaml"
        if profile.is_file():
            yield profile
    if settings.config_file is not None:
        yield Path(settings.config_file)


def _limits(document: Json, name: str) -> dict[str, Any]:
    content = _section(document, name, ("defaults", "primary_metric", "guards"))
    below = _limits(content["defaults"], f"{name}: defaults") if "defaults" in content else {}
    metric = _section(content.get("primary_metric"), f"{name}: primary_metric", LIMITS)
    ranges = {key: by_end(value) for key, value in metric.items()}
    guards = dict(leaves("guards", content.get("guards") or {}))
    return _merged(below, ranges | dict(_section(guards, name, guard_limits())))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Limits with others above them: of a range, an end that is not named above keeps what stands below."""
    merged = {**below, **above}
    for name in LIMITS:
        low, high = below.get(name), above.get(name)
        if isinstance(low, Mapping) and isinstance(high, Mapping):
            merged[name] = {**low, **high}
    return merged


def by_end(value: Json) -> Json:
    """A range that is given as a pair, as a mapping of its ends; all else as it is."""
    return dict(zip(("min", "max"), value, strict=True)) if isinstance(value, list) and len(value) == 2 else value


def leaves(path: str, value: Json) -> Iterator[tuple[str, Json]]:
    """The values of nested mappings by dotted path."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, inner in value.items():
        yield from leaves(f"{path}.{key}", inner)


def _section(value: Json, name: str, known: Collection[str]) -> Mapping[str, Any]:
    """A mapping of known keys; what was left empty sets nothing."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} is {value!r}, not a mapping", _MEND)
    if unknown := [key for key in value if key not in known]:
        raise BadInput(f"{name}: {unknown[0]!r} cannot be configured here", _MEND)
    return value

"""Limits that an operator's configuration files set in place of those of tier and profile.

Two files may, both YAML with `!include`: the profile's, ``runtime/profiles/<profile>.yaml`` below
INVARLOCK_CONFIG_ROOT, and on top of it PACK_CONFIG_FILE. Each holds ``primary_metric`` with ``acceptance_range`` and
``drift_band``, and ``guards`` with limits by guard (``spectral: {max_caps: 8}``); ``defaults`` (usually an include)
holds the same and yields to what stands beside it, limit by limit.
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
    for file, directory in _files(settings):
        found |= _limits(read_yaml(file, Reach(directory, settings.allow_config_include_outside)), str(file))
    return found


def _files(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """Each file with the directory in which its includes must lie."""
    root = Path(settings.config_root) if settings.config_root else None
    if root is not None:
        if not root.is_dir():
            raise MissingFile(f"INVARLOCK_CONFIG_ROOT {root} is no directory", "name a directory, or unset it")
        if (tiers := root / "runtime" / "tiers.yaml").exists():
            raise BadInput(f"{tiers}: tiers of one's own are not supported", "remove it; " + _MEND)
        profile = root / "runtime" / "profiles" / f"{settings.profile}.yaml"
        if profile.is_file():
            yield profile, root
    if settings.config_file is not None:
        file = Path(settings.config_file)
        inside = root is not None and file.resolve().is_relative_to(root.resolve())
        yield file, root if root is not None and inside else file.parent


def _limits(document: Json, name: str) -> dict[str, Any]:
    content = _section(document, name, ("defaults", "primary_metric", "guards"))
    below = _limits(content["defaults"], f"{name}: defaults") if "defaults" in content else {}
    metric = _section(content.get("primary_metric", {}), f"{name}: primary_metric", LIMITS)
    guards = dict(_leaves("guards", content.get("guards", {})))
    return below | dict(metric) | dict(_section(guards, name, guard_limits()))


def _leaves(path: str, value: Json) -> Iterator[tuple[str, Json]]:
    """The values of nested mappings by dotted path."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


def _section(value: Json, name: str, known: Collection[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} is {value!r}, not a mapping", _MEND)
    if unknown := [key for key in value if key not in known]:
        raise BadInput(f"{name}: {unknown[0]!r} cannot be configured here", _MEND)
    return value

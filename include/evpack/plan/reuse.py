"""Presets of an earlier campaign in place of calibration runs: found, checked and frozen when a campaign is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evpack.catalog.config import LIMITS, by_end, leaves, reach_of
from evpack.catalog.loader import parse_document, read_document
from evpack.catalog.policy import Policy
from evpack.errors import BadInput, MissingFile
from evpack.files import Json
from evpack.settings import Settings
from evpack.yaml_files import read_yaml

SUFFIXES = (".yaml", ".yml", ".json")
"""Forms of a preset, in order of preference."""
_SECTIONS = ("_calibration_meta", "dataset", "guards")


def reused_presets(names: Sequence[str], settings: Settings, policy: Policy) -> dict[str, dict[str, str]] | None:
    """The presets that PACK_CALIBRATION_PRESET_FILE or else _DIR give the models; None when neither is set.

    Args:
        names: directory names of the campaign's models.
        policy: the limits in force.

    Returns:
        ``{model: {file, text}}``, the text as it was understood: plain YAML with all includes in place.

    Raises:
        MissingFile: a model has no preset.
        BadInput: one is damaged, of another model, tier, provider, order of guards or shape of windows, or states
            limits that are not in force.
    """
    if not settings.reuses_presets:
        return None
    found = {}
    for name in names:
        file = _file_of(name, settings)
        preset = _read(file, settings)
        _check(preset, file, name, settings)
        _check_limits(preset, file, policy)
        found[name] = {"file": str(file), "text": yaml.safe_dump(preset, sort_keys=False)}
    return found


def _file_of(name: str, settings: Settings) -> Path:
    if settings.calibration_preset_file is not None:
        return Path(settings.calibration_preset_file)
    directory = Path(settings.calibration_preset_dir or "")
    for suffix in SUFFIXES:
        file = directory / f"calibrated_preset_{name}{suffix}"
        if file.is_file():
            return file
    raise MissingFile(
        f"PACK_CALIBRATION_PRESET_DIR {directory} holds no calibrated_preset_{name} ({', '.join(SUFFIXES)})",
        "calibrate this model in a campaign of its own, or unset the variable",
    )


def _read(file: Path, settings: Settings) -> Mapping[str, Any]:
    preset: Json
    if file.suffix == ".json":
        preset = parse_document(
            read_document(file, "calibration preset", "name an existing preset"), f"calibration preset {file}"
        )
    else:
        preset = read_yaml(file, reach_of(file, settings), "calibration preset")
    whole = {"it": preset} if not isinstance(preset, dict) else {key: preset.get(key) for key in _SECTIONS}
    for what, value in whole.items():
        if not isinstance(value, dict):
            raise BadInput(
                f"calibration preset {file}: {what} is {value!r:.100}, not a mapping",
                "reuse a preset of the same kind of campaign, or calibrate anew",
            )
    return {**preset}


def _check(preset: Mapping[str, Any], file: Path, name: str, settings: Settings) -> None:
    """What was calibrated must be what is evaluated."""
    meta, dataset, order = preset["_calibration_meta"], preset["dataset"], preset["guards"].get("order")
    for what, there, here in (
        ("model", meta.get("model_name"), name),
        ("tier", meta.get("tier"), settings.tier),
        ("provider", dataset.get("provider"), settings.dataset),
        ("seq_len", dataset.get("seq_len"), settings.seq_len),
        ("stride", dataset.get("stride"), settings.advance),
        ("preview windows", dataset.get("preview_n"), settings.preview_windows),
        ("final windows", dataset.get("final_n"), settings.final_windows),
        ("order of guards", tuple(order) if isinstance(order, list) else order, settings.guards_order),
    ):
        if there != here:
            raise BadInput(
                f"calibration preset {file}: its {what} is {there!r}, this campaign's is {here!r}",
                "reuse a preset of the same kind of campaign, or calibrate anew",
            )


def _check_limits(preset: Mapping[str, Any], file: Path, policy: Policy) -> None:
    """A preset says which limits are in force and sets none (decision 13)."""
    for name, value in _limits(preset):
        leaf = policy.thresholds.get(name.removeprefix("guards."))
        if leaf is None or leaf.value != value:
            raise BadInput(
                f"calibration preset {file}: its {name} is {value!r:.100}, "
                + ("which is no limit" if leaf is None else f"in force is {leaf.value!r}"),
                "take it out, or calibrate anew; limits of your own belong into PACK_CONFIG_FILE",
            )


def _limits(preset: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    """What a preset states as limits, but for the z-scores' caps, which follow the baseline and decide nothing."""
    for guard, section in preset["guards"].items():
        if guard == "order":
            continue
        if isinstance(section, Mapping):
            section = {key: value for key, value in section.items() if key != "family_caps"}
        yield from leaves(f"guards.{guard}", section)
    metric = preset.get("primary_metric", {})
    if isinstance(metric, Mapping):
        metric = {key: by_end(value) if key in LIMITS else value for key, value in metric.items()}
    yield from leaves("primary_metric", metric)

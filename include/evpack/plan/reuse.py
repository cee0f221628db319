"""Presets of an earlier campaign in place of calibration runs: found, checked and frozen when a campaign is planned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evpack.catalog.loader import parse_document, read_document
from evpack.errors import BadInput, MissingFile
from evpack.files import Json, sha256_bytes
from evpack.settings import Settings
from evpack.yaml_files import parse_yaml

SUFFIXES = (".yaml", ".yml", ".json")
"""Forms of a preset, in order of preference."""


def reused_presets(names: Sequence[str], settings: Settings) -> dict[str, dict[str, str]] | None:
    """The presets that PACK_CALIBRATION_PRESET_FILE or else _DIR give the models; None when neither is set.

    Args:
        names: directory names of the campaign's models.

    Returns:
        ``{model: {file, sha256, text}}``, the text as it stands in the file.

    Raises:
        MissingFile: a model has no preset.
        BadInput: one is damaged, or of another model, tier, provider, order of guards or shape of windows.
    """
    if not settings.reuses_presets:
        return None
    found = {}
    for name in names:
        file = _file_of(name, settings)
        data = read_document(file, "calibration preset", "name an existing preset")
        _check(_parse(data, file), file, name, settings)
        found[name] = {"file": str(file), "sha256": sha256_bytes(data), "text": data.decode("utf-8")}
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


def _parse(data: bytes, file: Path) -> Json:
    return parse_document(data, str(file)) if file.suffix == ".json" else parse_yaml(data, str(file))


def _check(preset: Json, file: Path, name: str, settings: Settings) -> None:
    """What was calibrated must be what is evaluated."""

    def given(section: str, key: str) -> Any:
        block = preset.get(section) if isinstance(preset, dict) else None
        return block.get(key) if isinstance(block, dict) else None

    order = given("guards", "order")
    for what, there, here in (
        ("model", given("_calibration_meta", "model_name"), name),
        ("tier", given("_calibration_meta", "tier"), settings.tier),
        ("provider", given("dataset", "provider"), settings.dataset),
        ("seq_len", given("dataset", "seq_len"), settings.seq_len),
        ("stride", given("dataset", "stride"), settings.advance),
        ("preview windows", given("dataset", "preview_n"), settings.preview_windows),
        ("final windows", given("dataset", "final_n"), settings.final_windows),
        ("order of guards", tuple(order) if isinstance(order, list) else order, settings.guards_order),
    ):
        if there != here:
            raise BadInput(
                f"calibration preset {file}: its {what} is {there!r}, this campaign's is {here!r}",
                "reuse a preset of the same kind of campaign, or calibrate anew",
            )

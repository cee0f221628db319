"""Suites: which models, under which settings, with which scenarios. Data in data/suites.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evpack.catalog.floors import with_enough_windows
from evpack.catalog.loader import parse_as, read_document, shipped
from evpack.catalog.scenarios import Category, Manifest, Scenario
from evpack.errors import BadInput, MissingFile
from evpack.files import expanded
from evpack.home import Home
from evpack.settings import Settings
from evpack.settings_resolve import peek_suite, resolve

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_ASSETS = {"fixture/model": "fixture_model", "fixture/text": "fixture_text"}
"""Locations ``asset:<key>`` and the function of evpack.assets that checks and gives their directory."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SuiteModel(_Part):
    """A model as a suite names it."""

    id: str
    location: str | None = None
    """``asset:<name>`` (in the package), ``home:<path>`` (below EVPACK_HOME), a directory, or None: a hub model."""


class Suite(_Part):
    """One suite."""

    note: str
    models: tuple[SuiteModel, ...] = Field(min_length=1)
    scenarios: str
    """Name of a shipped scenario manifest."""
    settings: dict[str, Any]
    """Settings that differ from the defaults; `text_path` is a location."""


class _Suites(_Part):
    schema_: Literal["evpack_suites_v1"] = Field(alias="schema")
    suites: dict[str, Suite]


def suites() -> Mapping[str, Suite]:
    """All suites by name, in the order of the data file."""
    return parse_as(_Suites, shipped("suites.json"), "suites.json").suites


def suite(name: str) -> Suite:
    """The suite of this name.

    Raises:
        BadInput: listing the known names.
    """
    known = suites()
    if name not in known:
        raise BadInput(f"unknown suite {name!r}", "known suites: " + ", ".join(known))
    return known[name]


def settings_for(
    params: Mapping[str, Any], event: Mapping[str, Any], environ: Mapping[str, str], home: Home
) -> Settings:
    """`settings_resolve.resolve` with the block of the suite that the sources name, its text turned into a path.

    A run has at least the windows that tier and profile ask for (`floors.with_enough_windows`).

    Raises:
        BadInput: unknown suite, wrong value, text of the suite that is not there.
    """
    block = dict(suite(peek_suite(params, event, environ)).settings)
    text = block.pop("text_path", None)
    settings = resolve(params, event, environ, block)
    if text is not None and settings.text_path is None and settings.dataset == "text":
        settings = resolve(params, event, environ, {**block, "text_path": str(locate(text, home))})
    return with_enough_windows(settings)


def chosen_models(settings: Settings) -> tuple[SuiteModel, ...]:
    """The campaign's models: the given ones or the suite's, with MODEL_1 to MODEL_8 laid over the slots.

    Raises:
        BadInput: when none is left, or one is neither a hub id nor a directory.
    """
    base: Sequence[SuiteModel] = suite(settings.suite).models
    if settings.models is not None:
        base = [named_model(text) for text in settings.models]
    slots: list[SuiteModel | None] = [*base, *[None] * (len(settings.model_slots) - len(base))]
    for index, override in enumerate(settings.model_slots):
        if override is not None:
            slots[index] = named_model(override) if override.strip() else None
    models = tuple(model for model in slots if model is not None)
    if not models:
        raise BadInput("no model is left: every slot is disabled", "set MODEL_1 or leave a model of the suite enabled")
    return models


def named_model(text: str) -> SuiteModel:
    """A model as an operator writes it: an id that some suite knows, a directory, or a hub id.

    Raises:
        MissingFile: when it looks like a path and no checkpoint is there.
        BadInput: when it is neither.
    """
    text = text.strip()
    for model in (model for suite_ in suites().values() for model in suite_.models):
        if model.id == text:
            return model
    path = expanded(text)
    if path.is_dir():
        return SuiteModel(id=path.resolve().name, location=str(path.absolute()))
    if path.suffix == ".gguf" and path.is_file():
        return SuiteModel(id=path.resolve().stem, location=str(path.absolute()))
    if text.startswith(("/", "./", "../", "~")):
        fault = "is neither a directory nor a .gguf file" if path.exists() else "does not exist"
        raise MissingFile(
            f"model path {text} {fault}", "give the directory of a safetensors checkpoint or a .gguf file"
        )
    if not _HUB_ID.fullmatch(text):
        raise BadInput(f"model {text!r} is neither a hub id nor a directory", "write <organisation>/<name> or a path")
    return SuiteModel(id=text)


def locate(location: str, home: Home) -> Path:
    """The path that a location of the catalog means.

    Raises:
        MissingFile: when nothing is there.
    """
    kind, colon, rest = location.partition(":")
    if colon and kind == "asset":
        from evpack import assets

        directory: Path = getattr(assets, _ASSETS[rest])()
        return directory
    path = home.root / rest if colon and kind == "home" else Path(location)
    if not path.exists():
        mend = "run `evpack assets demo`" if kind == "home" else "give the directory of a safetensors checkpoint"
        raise MissingFile(f"{path} does not exist", mend)
    return path


def chosen_scenarios(settings: Settings) -> Manifest:
    """The scenario manifest of the campaign: a file, or the suite's, or a selection of it by id, in manifest order.

    Scenarios without runs (CLEAN_EDIT_RUNS, STRESS_EDIT_RUNS, RUN_ERROR_INJECTION) are left out.

    Raises:
        BadInput: unknown id (with the known ones), damaged or empty manifest.
    """
    name = suite(settings.suite).scenarios
    wanted = settings.scenarios or ()
    if len(wanted) == 1 and wanted[0].endswith(".json"):
        path = expanded(wanted[0])
        data = read_document(path, "scenario manifest", "set scenarios to a manifest file or to scenario ids")
        manifest, wanted = parse_as(Manifest, data, str(path)), ()
    else:
        manifest = parse_as(Manifest, shipped(name), name)
    known = [scenario.id for scenario in manifest.scenarios]
    if unknown := [text for text in wanted if text not in known]:
        raise BadInput(f"unknown scenario {unknown[0]!r}", "known scenarios: " + ", ".join(known))
    chosen = tuple(
        scenario
        for scenario in manifest.scenarios
        if (not wanted or scenario.id in wanted) and runs_of(scenario, settings)
    )
    if not chosen:
        raise BadInput(
            "no scenario is left to run", "raise CLEAN_EDIT_RUNS or STRESS_EDIT_RUNS, or set RUN_ERROR_INJECTION=true"
        )
    return manifest.model_copy(update={"scenarios": chosen})


def runs_of(scenario: Scenario, settings: Settings) -> int:
    """How many evaluation runs a scenario gets per model."""
    if scenario.category is Category.CLEAN:
        return settings.clean_edit_runs
    return settings.stress_edit_runs if scenario.category is Category.STRESS else int(settings.run_error_injection)

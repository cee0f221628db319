"""YAML that operators write: plain data only, each key once, other files by `!include` where that is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evpack.errors import BadInput, MissingFile
from evpack.files import Json

MAX_BYTES = 1 << 20
"""Largest file that is read."""
MAX_INCLUDES = 64
"""Files that one configuration may consist of."""

_MEND = "write plain YAML: mappings, lists, texts and numbers"


@dataclass(frozen=True)
class Reach:
    """Which files a configuration may include."""

    directory: Path
    """Includes must lie below it, symbolic links followed."""
    outside: bool = False
    """Whether they may lie anywhere (INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE)."""


def parse_yaml(text: str | bytes, name: str) -> Json:
    """A document without includes.

    Args:
        name: what to call it in an error.

    Raises:
        BadInput: not YAML, a tag or an alias in it, a key twice, too large.
    """

    def refuse(target: str) -> Json:
        raise BadInput(f"{name}: !include {target} stands where no file may be included", "write its content here")

    return _parse(text, name, refuse)


def read_yaml(path: Path, reach: Reach, what: str = "configuration") -> Json:
    """A file with all its includes in place; a path in `!include` is relative to the file in which it stands.

    Args:
        what: the file is, for errors.

    Raises:
        MissingFile: the file or an included one is not there.
        BadInput: as `parse_yaml`; an include outside the directory, or of a file that includes it.
    """
    read = 0

    def load(file: Path, chain: tuple[Path, ...]) -> Json:
        nonlocal read
        read += 1
        if file in chain:
            raise BadInput(f"{file} includes itself by way of {chain[-1]}", "break the circle")
        if read > MAX_INCLUDES:
            raise BadInput(f"{path} consists of more than {MAX_INCLUDES} files", "include fewer")

        def include(target: str) -> Json:
            found = (file.parent / target).resolve()
            if not (reach.outside or found.is_relative_to(reach.directory.resolve())):
                raise BadInput(
                    f"{file}: !include {target} leaves the configuration's directory {reach.directory}",
                    "move the file there, or set INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE=1",
                )
            return load(found, (*chain, file))

        return _parse(_bytes(file, what), str(file), include)

    return load(path.resolve(), ())


def _bytes(file: Path, what: str) -> bytes:
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise BadInput(f"{what} {file} cannot be read (no regular file)", "mend the path")
        with file.open("rb") as handle:
            return handle.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise MissingFile(f"{what} {file} does not exist", "mend the path") from error
    except OSError as error:
        raise BadInput(f"{what} {file} cannot be read ({error.strerror})", "mend the path") from error


def _parse(text: str | bytes, name: str, include: Callable[[str], Json]) -> Json:
    if len(text) > MAX_BYTES:
        raise BadInput(f"{name}: more than {MAX_BYTES} bytes of YAML", "write less")
    try:
        loader = _Loader(text, name, include)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError as error:
        raise BadInput(f"{name}: nested too deeply", _MEND) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise BadInput(f"{name} is not plain YAML: {' '.join(str(error).split())}", _MEND) from error


class _Loader(yaml.SafeLoader):
    """Plain data: no tags but `!include`, no aliases (they can blow a small file up), no key twice."""

    def __init__(self, text: str | bytes, name: str, include: Callable[[str], Json]) -> None:
        super().__init__(text)
        self._name = name
        self._include = include

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise BadInput(f"{self._name}: aliases are not supported", "write the value out, or use !include")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise BadInput(f"{self._name}: key {key!r} stands twice in one mapping", "keep one of them")
        return super().construct_mapping(node, deep)

    def construct_include(self, node: yaml.Node) -> Json:
        return self._include(str(self.construct_scalar(node)))  # type: ignore[arg-type]  # refuses other kinds


_PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _PLAIN
}
_Loader.add_constructor("!include", _Loader.construct_include)
_Loader.add_implicit_resolver(  # YAML 1.1 wants a dot and a sign in 1.0e-2; everybody else reads 1e-2 as a number too
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)

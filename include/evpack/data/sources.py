"""Where evaluation text comes from: text files, JSON lines, or a hub dataset whose rows are kept as JSON lines."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evpack.data.hub_text import FIELD, HubText, encodable
from evpack.errors import BadInput, MissingFile
from evpack.home import Home
from evpack.settings import Settings


@dataclass(frozen=True)
class TextSource:
    """Resolved local text files of one provider."""

    provider: str
    files: tuple[Path, ...]
    """Sorted, at least one."""
    field: str = "text"
    """Field of a JSON line that holds the text."""
    max_samples: int | None = None
    """At most this many JSON lines are used; None for all."""

    def texts(self) -> Iterator[str]:
        """Texts in file order, stripped, empty ones left out, exact duplicates given once.

        Raises:
            BadInput: naming the file (and line) that is unreadable, binary, not UTF-8 or not JSON lines.
        """
        seen: set[str] = set()
        rows = (_read(file) for file in self.files) if self.provider == "text" else _json_lines(self)
        for text in (row.strip() for row in rows):
            if text and text not in seen:
                seen.add(text)
                yield text


def source_from(settings: Settings, home: Home | None = None) -> TextSource:
    """The text source that the settings name; rows of a hub dataset are fetched when they are not there yet.

    Args:
        home: the deployment that keeps such rows; this process's when None.

    Raises:
        BadInput: for an unknown provider, a provider without its path, or a dataset that is not what the settings say.
        MissingFile: when the path does not exist or holds no text file, or a dataset is not there without network.
        Transient: when the hub cannot be reached.
    """
    if hub := hub_text(settings, home):
        return TextSource(hub.provider, (hub.fetch(network=settings.net),), field=FIELD)
    find = _LOCAL.get(settings.dataset)
    if find is None:
        raise BadInput(
            f"dataset provider {settings.dataset!r} is not supported",
            "choose one of " + ", ".join(sorted([*_LOCAL, *_HUB])),
        )
    return find(settings)


def hub_text(settings: Settings, home: Home | None = None) -> HubText | None:
    """The hub dataset that the settings name; None when their provider is a local one."""
    return HubText.named(settings, home or Home.locate()) if settings.dataset in _HUB else None


def _text_source(settings: Settings) -> TextSource:
    if not settings.text_path:
        raise BadInput("dataset provider 'text' has no path", "set text_path to a .txt file or a directory of them")
    return TextSource("text", _files_at(Path(settings.text_path), "*.txt", "text_path"))


def _jsonl_source(settings: Settings) -> TextSource:
    if settings.local_jsonl_file:
        files = _files_at(Path(settings.local_jsonl_file), "*.jsonl", "local_jsonl_file")
    elif settings.local_jsonl_path:
        files = _files_at(Path(settings.local_jsonl_path), "*.jsonl", "local_jsonl_path")
    elif settings.local_jsonl_data_files:
        files = _globbed(settings.local_jsonl_data_files)
    else:
        raise BadInput(
            "dataset provider 'local_jsonl' has no path",
            "set local_jsonl_file, local_jsonl_path (a directory) or local_jsonl_data_files (a glob or a list)",
        )
    return TextSource(
        "local_jsonl",
        files,
        field=settings.local_jsonl_text_field,
        max_samples=settings.local_jsonl_max_samples,
    )


_LOCAL: dict[str, Callable[[Settings], TextSource]] = {"text": _text_source, "local_jsonl": _jsonl_source}
_HUB = frozenset({"wikitext2", "hf_text"})


def _globbed(patterns: Sequence[str]) -> tuple[Path, ...]:
    found: set[Path] = set()
    for pattern in patterns:
        matches = {Path(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207 - patterns are absolute
        if not matches:
            raise MissingFile(f"local_jsonl_data_files: nothing matches {pattern!r}", "give a path or glob that exists")
        found |= {path for path in matches if path.is_file()}
    if not found:
        raise MissingFile(f"local_jsonl_data_files {patterns} matches no file", "give files, not directories")
    return tuple(sorted(found))


def _files_at(path: Path, pattern: str, setting: str) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise MissingFile(f"{setting} {path} does not exist", f"give a {pattern[1:]} file or a directory of them")
    try:
        files = tuple(sorted(item for item in path.glob(pattern) if item.is_file()))
    except OSError as error:
        raise BadInput(f"{setting} {path} cannot be read ({error.strerror})", "mend its permissions") from error
    if not files:
        raise MissingFile(f"{setting} {path} holds no {pattern} file", "give a directory with text in it")
    return files


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"text file {file} cannot be read ({error.strerror})", "mend its permissions") from error
    if b"\0" in data:
        raise BadInput(f"text file {file} is binary (NUL byte at {data.index(0)})", "give UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"text file {file} is not UTF-8 (byte {error.start})", "convert it to UTF-8") from error


def _json_lines(source: TextSource) -> Iterator[str]:
    used = 0
    for file in source.files:
        for number, line in enumerate(_read(file).split("\n"), start=1):
            if not line.strip():
                continue
            if used == source.max_samples:
                return
            used += 1
            yield _field_of(line, source.field, f"{file}, line {number}")


def _field_of(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        raise BadInput(f"{where} is not JSON: {error}", "give one JSON object per line") from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        known = f"; its keys are {sorted(row)}" if isinstance(row, dict) else ""
        raise BadInput(f"{where} has no text field {field!r}{known}", "set local_jsonl_text_field")
    return encodable(row[field], where)


def readable_bytes(source: TextSource) -> int:
    """Size of all files together, each opened once, in bytes.

    Raises:
        BadInput: naming the file that cannot be read or is empty.
    """
    total = 0
    for file in source.files:
        try:
            with file.open("rb") as handle:
                total += os.fstat(handle.fileno()).st_size
        except OSError as error:
            raise BadInput(f"text file {file} cannot be read ({error.strerror})", "mend its permissions") from error
    if total == 0:
        raise BadInput(f"text {source.files[0]} is empty", "give a text with enough words for the windows")
    return total

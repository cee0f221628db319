"""checksums.sha256: one line per packed file, in the format of coreutils (`sha256sum -c` accepts it)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from evpack.errors import IntegrityError
from evpack.pack import layout

_LINE = re.compile(r"([a-f0-9]{64}) [ *](.+)")


def render(digests: Mapping[str, str]) -> bytes:
    """The file's bytes: ``<64 hex>  <name>`` per line, sorted by name, LF."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode("ascii")


def parse(data: bytes) -> dict[str, str]:
    """``{name: hex SHA-256}`` from the bytes of checksums.sha256.

    Raises:
        IntegrityError: naming the line that is malformed, out of order, listed twice or not a canonical name.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{layout.CHECKSUMS}: not ASCII at byte {error.start}") from error
    if not text.endswith("\n"):
        raise IntegrityError(f"{layout.CHECKSUMS}: the last line does not end with a newline")
    digests: dict[str, str] = {}
    previous = ""
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise IntegrityError(f"{layout.CHECKSUMS}: line {number} is not '<sha256>  <name>': {line[:100]!r}")
        digest, name = match.groups()
        problem = "a control file" if name in layout.CONTROL else layout.name_problem(name)
        if problem:
            raise IntegrityError(f"{layout.CHECKSUMS}: line {number}: {name[:100]!r} is {problem}")
        if name <= previous:
            raise IntegrityError(f"{layout.CHECKSUMS}: line {number}: {name!r} stands twice or out of order")
        digests[name] = digest
        previous = name
    return digests

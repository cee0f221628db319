"""What marks a sealed pack, and that nothing is made inside one; known below everything that makes files."""

from __future__ import annotations

import os
from pathlib import Path

from evpack.errors import BadInput

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.sha256"


def check_outside(path: Path, what: str) -> None:
    """Refuse to make anything inside a sealed pack, which is never changed; links on the way are followed.

    Raises:
        BadInput: naming the path as `what` calls it.
    """
    for root in Path(os.path.realpath(path)).parents:
        if all((root / name).is_file() for name in (MANIFEST, CHECKSUMS)):
            raise BadInput(f"{what} {path} lies inside the sealed pack {root}, and no pack changes", "write elsewhere")

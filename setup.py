"""Bakes provenance into a build: a wheel has no git checkout to ask, so it carries the answer with it.

Everything else about the package stands in pyproject.toml. A build outside git, and without EVPACK_SOURCE_REPO, is
made without provenance; a campaign planned by it then has to be told (`evpack.pack.provenance`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "include"))

from evpack.errors import BadInput  # noqa: E402 - the package is importable from here on
from evpack.pack.provenance import BAKED, collect_source_repo  # noqa: E402

PLACE = BAKED.relative_to(ROOT / "include")


def bake(target: Path) -> None:
    """Write the provenance of this checkout to a file of the build, never of the checkout itself."""
    try:
        value = collect_source_repo(ROOT / "include" / "evpack")
    except BadInput as error:
        print(f"warning: built without provenance: {error}", file=sys.stderr)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class BuildPy(build_py):
    """Adds provenance to what goes into a wheel."""

    def run(self) -> None:
        """Copy the package, then bake."""
        super().run()
        if not self.editable_mode:
            bake(Path(self.build_lib) / PLACE)


class Sdist(sdist):
    """Adds provenance to a source archive, from which a wheel may be built elsewhere."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the sources, then bake."""
        super().make_release_tree(base_dir, files)
        bake(Path(base_dir) / "include" / PLACE)


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})

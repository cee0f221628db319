"""`python -m benchmarks AREA ...`: measure areas; `--docs` only writes the page."""

from __future__ import annotations

import importlib
import sys

from benchmarks.rows import ROOT, write_area, write_page

AREAS = sorted(path.stem for path in ROOT.glob("area_*.py"))


def main(arguments: list[str]) -> int:
    if arguments != ["--docs"]:
        known = [name.removeprefix("area_") for name in AREAS]
        wanted = known if not arguments or arguments == ["all"] else arguments
        for area in wanted:
            if area not in known:
                print(f"no benchmark area {area!r}; known: {', '.join(known)}", file=sys.stderr)
                return 2
            rows = importlib.import_module(f"benchmarks.area_{area}").measure()
            print(write_area(area, rows))
            for row in rows:
                print(f"  {'holds ' if row.holds else 'SHORT '} {row.name}: {row.value:.4g} {row.unit}")
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Area pack: what a verifier waits for and how much memory it takes, on packs of about 250 and 1,000 reports."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import ROOT, Row
from evpack.pack.build import build
from evpack.pack.verify import MOST_PROCESSES
from evpack.processes import cores

REPORTS, LAYERS = 1000, 30
"""A model of 30 blocks: 212 matrices and 272 modules listened to, as many as the demo model's."""
_SAMPLE_S = 0.05
_PROBE = """
import json, sys, time
from pathlib import Path
from evpack.pack.verify import verify_pack
started = time.perf_counter()
result = verify_pack(Path(sys.argv[1]), jobs=int(sys.argv[2]))
seconds = time.perf_counter() - started
assert result.exit_code == 8 and not result.findings, result.to_json()
# ru_maxrss of this process would include what its parent held when it started it
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
own = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"seconds": seconds, "reports": result.reports, "own": own}))
"""


def measure() -> list[Row]:
    processes = min(cores(), MOST_PROCESSES)
    with tempfile.TemporaryDirectory(prefix="evpack-bench-") as folder:
        small, large = _pack(Path(folder) / "small", REPORTS // 4), _pack(Path(folder) / "large", REPORTS)
        reference = min(_sha256sum(large) for _ in range(3))
        one, few = _verify(large, 1), _verify(small, 1)
        several = _verify(large, processes)
        total = sum(path.stat().st_size for path in large.rglob("*") if path.is_file())
    count = one["reports"]
    allowed = 2 * reference + 0.020 * count
    return [
        Row(
            f"verify {count:.0f} reports on one core",
            one["seconds"],
            "s",
            allowed,
            "at most",
            note=f"allowed twice `sha256sum -c` ({reference:.3f} s) and 20 ms per report; pack of {total / 1e6:.0f} MB",
        ),
        Row(
            f"the same on {processes} cores",
            several["seconds"],
            "s",
            0.75 if processes > 1 else 1.1,
            "at most",
            reference=one["seconds"],
            reference_name="one core",
        ),
        Row(
            f"memory of verify on {processes} cores, all processes together",
            several["together"] / 1e6,
            "MB",
            200,
            "at most",
            note=f"proportional set sizes added, the largest of a sample every {_SAMPLE_S:g} s",
        ),
        Row(
            f"memory on one core, {count:.0f} reports against {few['reports']:.0f}",
            one["own"] / 1e6,
            "MB",
            1.25,
            "at most",
            reference=few["own"] / 1e6,
            reference_name=f"{few['reports']:.0f} reports",
            note="no report stays in memory; what grows are outcomes and summaries, which name every run",
        ),
    ]


def _pack(folder: Path, reports: int) -> Path:
    """A pack of invented losses and guard figures: two clean scenarios, so half as many runs of each."""
    sys.path.insert(0, str(ROOT.parent / "tests" / "pack"))
    from pack_campaign import Campaign

    campaign = Campaign(folder / "run", runs=reports // 2, layers=LAYERS).write().finish()
    return build(campaign.run, key=None, html=False).path


def _sha256sum(pack: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["sha256sum", "--quiet", "--check", "checksums.sha256"], cwd=pack, check=True)
    return time.perf_counter() - started


def _verify(pack: Path, jobs: int) -> dict[str, float]:
    """Seconds, reports and memory in bytes of a verifier in a process of its own, and of it with its children."""
    command = [sys.executable, "-c", _PROBE, str(pack), str(jobs)]
    together = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            together = max(together, sum(map(_share, [process.pid, *_children(process.pid)])))
            time.sleep(_SAMPLE_S)
        out = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"the verifier ended with {process.returncode}")
    return json.loads(out) | {"together": together}


def _children(pid: int) -> list[int]:
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(word) for file in files for word in file.read_text().split()]
    except OSError:
        return []


def _share(pid: int) -> int:
    """Proportional set size of a process, bytes: shared pages count once over all who share them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)

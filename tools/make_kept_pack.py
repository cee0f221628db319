"""Makes tests/packs/v1 again from the committed state: a real campaign, sealed with a key that nobody keeps.

Only until the first release: from then on a kept pack never changes. Takes about two minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "tests" / "packs" / "v1"
SCENARIOS = "quant_clean,prune_50pct_stress,nan_injection,scale_explosion,rmt_norm_noise"
RUNS = {"CLEAN_EDIT_RUNS": "2", "STRESS_EDIT_RUNS": "1", "DRIFT_CALIBRATION_RUNS": "2"}
COMMAND = "import sys; from evpack.cli.main import main; sys.exit(main())"


def main() -> None:
    """Clone, plan, run every step, seal, verify, replace."""
    with tempfile.TemporaryDirectory(prefix="evpack-kept-") as folder:
        work = Path(folder)
        clone, run, pack, key = work / "code", work / "run", work / "pack", work / "key"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)

        def evpack(*words: str) -> None:
            settings = {k: v for k, v in os.environ.items() if not k.startswith(("PACK_", "EVPACK_", "INVARLOCK_"))}
            own = {"PYTHONPATH": str(clone / "include"), "EVPACK_HOME": str(work / "home"), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", COMMAND, *words]
            done = subprocess.run(command, env=settings | RUNS | own, cwd=clone, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"evpack {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

        evpack("plan", "--suite", "fixture", "-p", f"scenarios={SCENARIOS}", "--out", str(run))
        steps = [step["id"] for step in json.loads((run / "state" / "plan.json").read_bytes())["steps"]]
        for step in steps:
            if step not in ("build_pack", "verify_pack"):
                print(step, flush=True)
                evpack("step", str(run), step)
        evpack("keygen", str(key))
        evpack("build", str(run), "--signing-key", str(key), "--skip-html", "--pack-dir", str(pack))
        public = key.with_name("key.pub.pem")
        policy = run / "state" / "policy.json"
        evpack("verify", "--strict", "--trusted-key", str(public), "--policy", str(policy), str(pack))
        shutil.rmtree(KEPT / "pack")
        shutil.copytree(pack, KEPT / "pack")
        shutil.copyfile(public, KEPT / "signer.pub.pem")
        shutil.copyfile(policy, KEPT / "policy.json")
    print(f"made again: {KEPT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""How a campaign ended, judged by its run directory alone: verdict, pack, verification."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpack.errors import CampaignExit, EvidenceError, EvpackError
from evpack.files import read_json
from evpack.home import Home
from evpack.pack import keys
from evpack.pack.verify import VerifyExit
from evpack.plan.model import CLOSING, CampaignPlan, load_plan
from evpack.rundir import RunDir
from evpack.runtime.threads import frozen_settings
from evpack.steps.build_pack import signing_key_of
from evpack.steps.plan import uncalibrated
from evpack.steps.state import read_marker, running_step


@dataclass(frozen=True)
class Outcome:
    """The end of a campaign."""

    exit: CampaignExit
    verdict: str | None
    """PASS, FAIL or INCOMPLETE of the verdict file; None when there is none."""
    problems: tuple[str, ...]
    """What stands in the way of a PASS besides the verdict itself."""
    pack: Path | None
    verification: dict[str, Any] | None
    """reports/pack_verification.json."""

    def line(self) -> str:
        """One line for people."""
        reasons = "; ".join(self.problems)
        return f"{self.exit.name}: {reasons}" if reasons else self.exit.name


def campaign_outcome(run: RunDir, *, dag_run: str | None = None) -> Outcome:
    """Judge a run directory. Missing or stale evidence is INCOMPLETE, never PASS.

    Args:
        dag_run: when given, verdict, pack and verification must have been made by this DAG run.
    """
    problems: list[str] = []
    pack, signed = run.pack, True
    try:
        load_plan(run)
        settings = frozen_settings(run)
        pack, signed = Path(settings.pack_dir or run.pack), settings.sign_manifest
    except EvpackError as error:
        problems.append(error.what)
    for step in CLOSING:
        marker = read_marker(run, step.value)
        if marker is None:
            problems.append(f"{step} did not finish")
        elif dag_run is not None and marker.dag_run != dag_run:
            problems.append(f"{step} was last done by another DAG run ({marker.dag_run})")
        elif not marker.intact(run):
            problems.append(f"what {step} made was changed or removed")
    verdict = _field(run.final_verdict, "verdict")
    verification = _document(run.reports / "pack_verification.json")
    if verification is not None and not _verified(verification, signed):
        problems.append(f"the pack does not verify (verifier exit {verification.get('exit')})")
    return Outcome(
        exit=_exit(verdict, problems),
        verdict=verdict,
        problems=tuple(problems),
        pack=pack if pack.is_dir() else None,
        verification=verification,
    )


def calibration_outcome(run: RunDir) -> Outcome:
    """Judge a run that only calibrated: there is no verdict, but every model must have its preset."""
    missing = uncalibrated(run, load_plan(run))
    problems = (f"no preset of {', '.join(missing)}",) if missing else ()
    exit_ = CampaignExit.INCOMPLETE if missing else CampaignExit.PASS
    return Outcome(exit_, None, problems, None, None)


def campaign_state(run: RunDir, plan: CampaignPlan) -> str:
    """One word for a list: RUNNING, else how the campaign ended."""
    return "RUNNING" if running_step(run, plan) else campaign_outcome(run).exit.name


def verify_command(run: RunDir, outcome: Outcome, home: Home) -> str | None:
    """The command line that verifies a campaign's signed pack in full; None without a pack or a signature.

    It trusts the public half of the key that signs here, or its fingerprint where that file is not there, and judges
    by the campaign's limits where its configuration set limits of its own.
    """
    signer = (outcome.verification or {}).get("signer_fingerprint")
    if outcome.pack is None or not isinstance(signer, str):
        return None
    try:
        private = signing_key_of(frozen_settings(run), home)
        limits = load_plan(run).policy_overrides
    except EvpackError:
        return None
    public = keys.public_path(private).absolute() if private else None
    trusted = ["--trusted-key", str(public)] if public and public.is_file() else ["--expected-fingerprint", signer]
    judged = ["--policy", str(run.policy)] if limits else []
    return shlex.join(["evpack", "verify", "--strict", *trusted, *judged, str(outcome.pack)])


def _verified(verification: dict[str, Any], signed: bool) -> bool:
    """Without a signature (PACK_SIGN_MANIFEST=0) integrity is all that can be asked for."""
    unpinned = not signed and verification.get("exit") == VerifyExit.INTEGRITY_ONLY
    return verification.get("ok") is True or unpinned


def _exit(verdict: str | None, problems: list[str]) -> CampaignExit:
    if problems or verdict is None or verdict not in CampaignExit.__members__:
        return CampaignExit.INCOMPLETE
    return CampaignExit[verdict]


def _document(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, EvidenceError):
        return None
    return value if isinstance(value, dict) else None


def _field(path: Path, name: str) -> str | None:
    value = (_document(path) or {}).get(name)
    return value if isinstance(value, str) else None

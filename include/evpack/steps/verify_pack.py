"""Step verify_pack: verify the sealed pack against the key that should have signed it; the gate reads the outcome."""

from __future__ import annotations

from pathlib import Path

from evpack.errors import BadInput
from evpack.files import write_json
from evpack.pack import keys
from evpack.pack.build import own_limits
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands
from evpack.pack.verify import verify_pack as verify
from evpack.steps.base import StepContext, log
from evpack.steps.build_pack import pack_path, signing_key_of


def verify_pack(ctx: StepContext) -> list[Path]:
    """Publish reports/pack_verification.json; a pack that does not verify is a result, not a crash."""
    key = signing_key_of(ctx.settings, ctx.home)
    trust = Trust(frozenset({_fingerprint(key)})) if key else Trust()
    demands = Demands(strict=key is not None, policy=own_limits(ctx.run))
    result = verify(pack_path(ctx.run, ctx.settings), trust, demands)
    for finding in result.findings:
        log.error("%s: %s", finding.code.name.lower(), finding.text)
    for warning in result.warnings:
        log.warning("%s", warning)
    log.info("verifier: %s (exit %d), verdict %s", result.exit_code.name.lower(), result.exit_code, result.verdict)
    outcome = ctx.run.reports / "pack_verification.json"
    write_json(outcome, result.to_json())
    return [outcome]


def _fingerprint(private: Path) -> str:
    """Fingerprint by the public half beside a private key, so that verifying needs no access to the private one."""
    public = keys.public_path(private)
    if not public.is_file():
        return keys.fingerprint(keys.load_private(private).public_key())
    try:
        return keys.fingerprint(keys.parse_public_pem(public.read_bytes()))
    except ValueError as error:
        raise BadInput(f"{public} is {error}", "delete it or write the public half of the signing key there") from error

"""Step build_pack: seal the evidence pack, whatever the verdict."""

from __future__ import annotations

from pathlib import Path

from evpack.files import write_json
from evpack.pack import keys
from evpack.pack.build import build
from evpack.steps.base import StepContext, log


def pack_path(ctx: StepContext) -> Path:
    """Where this campaign's pack goes: PACK_DIR, else evidence_pack/ in the run directory."""
    return Path(ctx.settings.pack_dir) if ctx.settings.pack_dir else ctx.run.pack


def signing_key(ctx: StepContext) -> Path | None:
    """The private key that signs: PACK_SIGNING_KEY, else the deployment's own; None when signing is off."""
    if not ctx.settings.sign_manifest:
        return None
    return Path(ctx.settings.signing_key) if ctx.settings.signing_key else keys.deployment_key(ctx.home)


def build_pack(ctx: StepContext) -> list[Path]:
    """Publish the pack and reports/evidence_pack.json, which says what was built (the pack may be elsewhere)."""
    target = pack_path(ctx)
    built = build(ctx.run, key=signing_key(ctx), out=target, html=not ctx.settings.skip_html)
    for warning in built.warnings:
        log.warning("%s", warning)
    log.info("pack %s %s, evidence level %s", target, "kept" if built.kept else "sealed", built.evidence_level)
    log.info("signed by %s", built.fingerprint or "nobody (signing is off)")
    summary = ctx.run.reports / "evidence_pack.json"
    write_json(summary, built.to_json())
    return [summary, built.path] if built.path.is_relative_to(ctx.run.root) else [summary]

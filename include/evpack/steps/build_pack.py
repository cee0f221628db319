"""Step build_pack: seal the evidence pack, whatever the verdict."""

from __future__ import annotations

from pathlib import Path

from evpack.errors import BadInput
from evpack.files import write_json
from evpack.home import Home
from evpack.pack import keys
from evpack.pack.build import build, check_target
from evpack.rundir import RunDir
from evpack.settings import Settings
from evpack.steps.base import StepContext, log


def pack_path(run: RunDir, settings: Settings) -> Path:
    """Where a campaign's pack goes: PACK_DIR, else evidence_pack/ in the run directory."""
    return Path(settings.pack_dir) if settings.pack_dir else run.pack


def signing_key_of(settings: Settings, home: Home) -> Path | None:
    """The private key that signs: PACK_SIGNING_KEY, else the deployment's own; None when signing is off."""
    if not settings.sign_manifest:
        return None
    return Path(settings.signing_key) if settings.signing_key else keys.deployment_key(home)


def check_pack(settings: Settings, run: RunDir) -> None:
    """Refuse, before anything is computed, what `build_pack` would refuse at the end. Makes no key and no directory.

    Raises:
        BadInput: PACK_SIGNING_KEY is no key that can sign, PACK_DIR no place for a pack.
    """
    if not settings.build_pack:
        return
    if settings.sign_manifest and settings.signing_key:
        keys.load_private(Path(settings.signing_key))
    target = pack_path(run, settings)
    check_target(target)
    if run.root.is_relative_to(target):
        raise BadInput(f"PACK_DIR {target} holds the run directory {run.root}", "give another directory for the pack")


def build_pack(ctx: StepContext) -> list[Path]:
    """Publish the pack and reports/evidence_pack.json, which says what was built (the pack may be elsewhere).

    With PACK_BUILD=0 the runner calls neither this nor `verify_pack`; `evpack build` can still seal the run directory.
    """
    target = pack_path(ctx.run, ctx.settings)
    key = signing_key_of(ctx.settings, ctx.home)
    built = build(ctx.run, key=key, out=target, html=not ctx.settings.skip_html, form=ctx.settings.layout)
    for warning in built.warnings:
        log.warning("%s", warning)
    log.info("pack %s %s, evidence level %s", target, "kept" if built.kept else "sealed", built.evidence_level)
    log.info("signed by %s", built.fingerprint or "nobody (signing is off)")
    summary = ctx.run.reports / "evidence_pack.json"
    write_json(summary, built.to_json())
    return [summary, built.path] if built.path.is_relative_to(ctx.run.root) else [summary]

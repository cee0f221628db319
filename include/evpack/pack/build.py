"""Build a pack: collect, recompute, seal, publish. Nothing of a pack is visible before all of it is.

The bytes are assembled in memory (weights are never packed), written to a hidden sibling of the target, flushed and
renamed. A sealed pack is never changed: unless the new one would hold the same evidence by the same signer, the old
one is renamed to ``<name>.superseded-<utc>`` and the new manifest names its digest.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evpack.errors import BadInput, EvidenceError
from evpack.files import Json, disk_errors, fsync_tree, parse_json, pretty_json, sha256_bytes, utc_now
from evpack.pack import checksums, inventory, keys, layout, manifest, provenance, signature, verify
from evpack.pack.collect import collect
from evpack.pack.readme import readme
from evpack.pack.recheck import Recheck, recheck
from evpack.pack.trust import Trust
from evpack.plan.model import CampaignPlan, load_plan
from evpack.rundir import RunDir

_REPEATS = "results/determinism_repeats.json"


@dataclass(frozen=True)
class BuiltPack:
    """A sealed pack on disk."""

    path: Path
    manifest_digest: str
    """``sha256:<hex>`` of manifest.json."""
    fingerprint: str | None
    """Signer, None when unsigned."""
    evidence_level: str
    kept: bool
    """True when the same pack stood there already."""
    superseded: str | None
    """Name of the directory that now holds the pack which stood there before."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """Plain JSON value; the path as a name only."""
        return {
            "pack": self.path.name,
            "manifest_digest": self.manifest_digest,
            "signing_key_fingerprint": self.fingerprint,
            "evidence_level": self.evidence_level,
            "kept": self.kept,
            "superseded": self.superseded,
            "warnings": list(self.warnings),
        }


def build(run: RunDir, *, key: Path | None, out: Path | None = None, html: bool = True) -> BuiltPack:
    """Seal the evidence of a campaign, whatever its verdict.

    Args:
        key: private key file that signs; None leaves the pack unsigned.
        out: the pack's directory; None means evidence_pack/ in the run directory.
        html: whether to add a page for people; failing to render it is a warning.

    Raises:
        BadInput: when the run directory has no verdict yet, the key is unusable, or `out` holds something else.
        EvidenceError: when a report or the verdict does not follow from the records.
        DiskFull: when the device has no room.
    """
    private = keys.load_private(key) if key else None
    signer = keys.fingerprint(private.public_key()) if private else None
    target = (out or run.pack).absolute()
    plan = load_plan(run)
    files = collect(run, plan)
    result = recheck(files)
    if result.errors:
        more = f" (and {len(result.errors) - 1} more)" if len(result.errors) > 1 else ""
        raise EvidenceError(
            f"the evidence in {run.root} is not consistent: {result.errors[0]}{more}",
            "clear the step that made it, so that it is redone",
        )
    warnings = list(result.warnings)
    files[layout.VERIFICATION] = pretty_json(result.summary())
    files[layout.ENVIRONMENT] = pretty_json(provenance.environment())
    if html:
        warnings += _add_page(files, plan)
    level = result.level(files)
    files[layout.README] = readme(plan, result, level, signer)
    with _exclusive(target) as directory:
        before = _standing(target)
        if before is not None and _same(before, files, signer):
            return BuiltPack(target, _digest(before), signer, level, True, None, tuple(warnings))
        aside = _free_name(target, utc_now()) if before is not None else None
        supersedes = {"name": aside, "manifest_digest": _digest(before)} if before is not None and aside else None
        _seal(files, _facts(run, files, result, level, signer, supersedes), private)
        _publish(target, files, aside, directory)
    digest = f"sha256:{sha256_bytes(files[layout.MANIFEST])}"
    return BuiltPack(target, digest, signer, level, False, aside, tuple(warnings))


def _seal(files: dict[str, bytes], facts: manifest.Facts, key: Ed25519PrivateKey | None) -> None:
    """Add checksums, manifest and signature, in this order."""
    for name in files:
        if problem := layout.name_problem(name):
            raise EvidenceError(f"{name!r} cannot be packed: {problem}")
    digests = {name: sha256_bytes(data) for name, data in files.items()}
    files[layout.CHECKSUMS] = checksums.render(digests)
    files[layout.MANIFEST] = pretty_json(manifest.build(facts, digests, files[layout.CHECKSUMS]))
    if key is not None:
        files[layout.SIGNATURE] = signature.sign(files[layout.MANIFEST], key)


def _facts(
    run: RunDir,
    files: dict[str, bytes],
    result: Recheck,
    level: manifest.EvidenceLevel,
    signer: str | None,
    supersedes: dict[str, str] | None,
) -> manifest.Facts:
    parameters = ("tier", "profile", "dataset", "seq_len", "preview_windows", "final_windows", "guards_order")
    plan, settings = result.plan, result.settings
    frozen = settings.to_json()
    return manifest.Facts(
        generated_at=utc_now(),
        plan=plan,
        online=settings.net,
        level=level,
        determinism=settings.determinism,
        repeats=settings.repeats,
        determinism_repeats=parse_json(files[_REPEATS], _REPEATS) if _REPEATS in files else None,
        label=run.root.name,
        parameters={
            **{name: frozen[name] for name in parameters},
            "settings_digest": f"sha256:{plan.settings_digest}",
            "plan_digest": f"sha256:{plan.digest()}",
        },
        source=provenance.check_source_repo(files[layout.SOURCE], layout.SOURCE),
        environment=parse_json(files[layout.ENVIRONMENT], layout.ENVIRONMENT),
        verification=result.summary(),
        fingerprint=signer,
        supersedes=supersedes,
    )


def _add_page(files: dict[str, bytes], plan: CampaignPlan) -> list[str]:
    """Render the HTML page; returns a warning when that fails (a page is never worth losing a pack)."""
    from evpack.render.page import render_verdict

    try:
        names = sorted(name for name in files if name.endswith(f"/{layout.REPORT}"))
        reports = [parse_json(files[name], name) for name in names]
        verdict = parse_json(files[layout.VERDICT], layout.VERDICT)
        files[layout.PAGE] = render_verdict(plan.suite, verdict, reports).encode("utf-8")
    except Exception as error:
        return [f"no HTML page: {type(error).__name__}: {error}"]
    return []


@contextmanager
def _exclusive(target: Path) -> Iterator[int]:
    """Hold the target's parent directory against other builds; sweep what a killed build left there.

    Raises:
        BadInput: when the directory cannot be made or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadInput(
            f"{target} cannot be written ({error.strerror})", "give another directory for the pack"
        ) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        for left in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield directory
    finally:
        os.close(directory)


def _standing(target: Path) -> dict[str, bytes] | None:
    """Files of the pack that stands at the target, None when nothing does.

    Raises:
        BadInput: when something other than a pack stands there.
    """
    if not target.exists() and not target.is_symlink():
        return None
    if target.is_symlink() or not target.is_dir():
        raise BadInput(f"{target} is not a directory of its own", "give another directory for the pack")
    if not any(target.iterdir()):
        return None
    if not (target / layout.MANIFEST).is_file():
        raise BadInput(f"{target} is not empty and holds no pack", "give another directory for the pack")
    return inventory.load(target).files


def _same(before: dict[str, bytes], files: dict[str, bytes], signer: str | None) -> bool:
    """Whether a standing pack is intact and holds the same evidence by the same signer.

    environment.json is left out: it says when it was recorded.
    """
    volatile = layout.CONTROL | {layout.ENVIRONMENT}
    if any(before.get(name) != files.get(name) for name in (before.keys() | files.keys()) - volatile):
        return False
    trust = Trust(frozenset({signer} if signer else ()))
    judged = verify.verify_files("", before, [], trust)
    return not judged.findings and judged.fingerprint == signer


def _digest(files: dict[str, bytes]) -> str:
    return f"sha256:{sha256_bytes(files.get(layout.MANIFEST, b''))}"


def _free_name(target: Path, now: str) -> str:
    """``<name>.superseded-<utc>``, with a number where one second saw two packs."""
    stamp = now.replace("-", "").replace(":", "")
    name, count = f"{target.name}.superseded-{stamp}", 1
    while target.with_name(name).exists():
        count += 1
        name = f"{target.name}.superseded-{stamp}-{count}"
    return name


def _publish(target: Path, files: dict[str, bytes], aside: str | None, directory: int) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        with disk_errors(target):
            for name, data in files.items():
                path = part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            fsync_tree(part)
        if aside is not None:
            target.rename(target.with_name(aside))
        part.rename(target)
        os.fsync(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)

"""Build a pack: collect, recompute, seal, publish. Nothing of a pack is visible before all of it is.

A pack is made in a hidden sibling of the target, flushed and renamed. A sealed pack is never changed: unless the new
one would hold the same evidence by the same signer, the old one is renamed to ``<name>.superseded-<utc>`` and the new
manifest names its digest. A build that is killed between those two renames is finished by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evpack.catalog.policy import Policy, resolve_policy
from evpack.errors import BadInput, EvidenceError
from evpack.files import Json, pretty_json, read_regular, sha256_bytes, utc_now
from evpack.pack import checksums, inventory, keys, layout, manifest, pages, provenance, signature, verify
from evpack.pack.collect import collect
from evpack.pack.inventory import Files, Inventory
from evpack.pack.layout import LAYOUTS, Layout, LayoutName
from evpack.pack.readme import readme
from evpack.pack.recheck import Recheck, recheck
from evpack.pack.trust import Trust
from evpack.plan.disk import existing_parent
from evpack.plan.model import load_plan
from evpack.publishing import disk_errors, fsync_tree
from evpack.rundir import RunDir
from evpack.sealed import check_outside
from evpack.settings import Settings


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


@dataclass
class _Stage:
    """The hidden directory in which a pack is made."""

    root: Path
    layout: Layout

    def add(self, name: str, data: bytes) -> None:
        """Write a file where the layout puts it.

        Raises:
            EvidenceError: when no pack may hold a file of that name.
        """
        place = self.layout.place(name)
        if problem := layout.name_problem(place):
            raise EvidenceError(f"{place!r} cannot be packed: {problem}")
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def files(self) -> Files:
        """What is there by now.

        Raises:
            EvidenceError: when a verifier would refuse it as it lies there, as it does what is too large.
        """
        found = inventory.load(self.root)
        if found.problems:
            mend = "seal fewer models, scenarios or runs in one campaign" if not found.complete else ""
            raise EvidenceError(f"no pack: a verifier would refuse it: {found.problems[-1]}", mend)
        return found.files


def own_limits(run: RunDir) -> Policy:
    """What a deployment judges its own campaign by: the installed limits with those that its configuration set.

    Taken from the plan, whose digest every report names; state/policy.json is what is checked.

    Raises:
        EvidenceError: when the frozen settings are missing or malformed.
    """
    if not run.settings.is_file():
        raise EvidenceError(f"{run.settings} is missing", "plan a new campaign in a new run directory")
    settings = Settings.parse(run.settings.read_bytes(), str(run.settings))
    return resolve_policy(settings.tier, settings.profile, load_plan(run).policy_overrides)


def build(
    run: RunDir, *, key: Path | None, out: Path | None = None, html: bool = True, form: LayoutName = "v1"
) -> BuiltPack:
    """Seal the evidence of a campaign, whatever its verdict (a PACK_VERIFY_PROFILE other than dev asks for more).

    Args:
        key: private key file that signs; None leaves the pack unsigned.
        out: the pack's directory; None means evidence_pack/ in the run directory.
        html: whether to add pages for people; failing to render one is a warning.
        form: layout of the pack.

    Raises:
        BadInput: when the run directory has no verdict yet, the key is unusable, or `out` holds something else.
        EvidenceError: when a report or the verdict does not follow from the records, or PACK_VERIFY_PROFILE is not met.
        DiskFull: when the device has no room.
    """
    private = keys.load_private(key) if key else None
    signer = keys.fingerprint(private.public_key()) if private else None
    target = (out or run.pack).absolute()
    check_target(target)
    plan, limits = load_plan(run), own_limits(run)
    with _exclusive(target) as directory, _staging(target, LAYOUTS[form]) as stage:
        for name, data in collect(run, plan):
            stage.add(name, data)
        stage.add(layout.ENVIRONMENT, pretty_json(provenance.environment()))
        result = recheck(stage.files(), stage.layout, limits)
        _refuse_inconsistent(run, result)
        for name, data in {**result.derived(), layout.README: readme(result, signer)}.items():
            stage.add(name, data)
        warnings = [*result.warnings, *(pages.add(result, signer, stage.add) if html else ())]
        files, before = stage.files(), _standing(target)
        if before is not None and _same(before, files, stage.layout, signer, limits):
            digest = before.files.digests[layout.MANIFEST]
            return BuiltPack(target, f"sha256:{digest}", signer, result.level, True, None, tuple(warnings))
        aside = _free_name(target, utc_now()) if before is not None else None
        supersedes = {"name": aside, "manifest_digest": _digest(before.files)} if before is not None and aside else None
        facts = manifest.Facts(utc_now(), result.level, run.root.name, signer, supersedes)
        sealed = _seal(stage, files, facts, result, private)
        stage.files()
        fsync_tree(stage.root)
        _publish(stage.root, target, aside, directory)
    return BuiltPack(target, f"sha256:{sha256_bytes(sealed)}", signer, result.level, False, aside, tuple(warnings))


def check_target(target: Path) -> None:
    """Refuse a place that cannot hold a pack: not to be made or written, not empty, or in another pack.

    Raises:
        BadInput: naming the place.
    """
    mend = "give another directory for the pack"
    try:
        check_outside(target, "pack directory")
        parent = existing_parent(target.parent)
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not target.exists() and not target.is_symlink():
            return
        if target.is_symlink() or not target.is_dir():
            raise BadInput(f"{target} is not a directory of its own", mend)
        if any(target.iterdir()) and not _is_pack(target):
            raise BadInput(f"{target} is not empty and holds no pack", mend)
    except OSError as error:
        raise BadInput(f"{target} cannot be written ({error.strerror})", mend) from error


def _is_pack(path: Path) -> bool:
    """Whether a directory is a pack by its own words; many other things have a manifest.json."""
    try:
        manifest.parse(read_regular(path / layout.MANIFEST, manifest.MAX_MANIFEST_BYTES))
    except (FileNotFoundError, EvidenceError):
        return False
    return (path / layout.CHECKSUMS).is_file()


def _refuse_inconsistent(run: RunDir, result: Recheck) -> None:
    if errors := (*result.other_limits, *result.errors):
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise EvidenceError(
            f"the evidence in {run.root} is not consistent: {errors[0]}{more}",
            "clear the step that made it, so that it is redone",
        )
    if result.unmet:
        more = f" (and {len(result.unmet) - 1} more)" if len(result.unmet) > 1 else ""
        raise EvidenceError(
            f"no pack: PACK_VERIFY_PROFILE of this campaign is not met: {result.unmet[0]}{more}",
            "plan a campaign with PACK_VERIFY_PROFILE=dev to seal whatever its reports say",
        )


def _seal(stage: _Stage, files: Files, facts: manifest.Facts, result: Recheck, key: Ed25519PrivateKey | None) -> bytes:
    """Add checksums, manifest and signature, in this order; returns the manifest."""
    control = {layout.CHECKSUMS: checksums.render(files.digests)}
    restated = manifest.restated(result.campaign, files.digests, result.summary(), result.repeats)
    control[layout.MANIFEST] = pretty_json(manifest.build(facts, restated, files.digests, control[layout.CHECKSUMS]))
    if key is not None:
        control[layout.SIGNATURE] = signature.sign(control[layout.MANIFEST], key)
    for copy, original in stage.layout.copies().items():
        if original in control:
            stage.add(copy, control[original])
    for name, data in control.items():
        stage.add(name, data)
    return control[layout.MANIFEST]


@contextmanager
def _exclusive(target: Path) -> Iterator[int]:
    """Hold the target's parent directory against other builds; settle what a killed build left there.

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
        staged = re.compile(rf"\.{re.escape(target.name)}\.[0-9]+-[0-9a-f]+\.tmp")
        for left in [path for path in target.parent.iterdir() if staged.fullmatch(path.name)]:
            if _was_being_published(left, target):
                left.rename(target)
                os.fsync(directory)
            else:
                shutil.rmtree(left, ignore_errors=True)
        yield directory
    finally:
        os.close(directory)


@contextmanager
def _staging(target: Path, where: Layout) -> Iterator[_Stage]:
    part = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        with disk_errors(target):
            part.mkdir()
            yield _Stage(part, where)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _was_being_published(left: Path, target: Path) -> bool:
    """Whether a hidden directory is a sealed pack whose predecessor was moved aside, so that only its name is missing.

    The predecessor is moved only after the new pack is complete and flushed.
    """
    if target.exists():
        return False
    try:
        named = manifest.parse((left / layout.MANIFEST).read_bytes())["supersedes"]
        data = (target.with_name(named["name"]) / layout.MANIFEST).read_bytes()
    except (OSError, EvidenceError, KeyError):
        return False
    return bool(named["manifest_digest"] == f"sha256:{sha256_bytes(data)}")


def _standing(target: Path) -> Inventory | None:
    """The pack that stands at the target, None when nothing does.

    Raises:
        BadInput: when something other than a pack stands there (`check_target`; it may have come since).
    """
    check_target(target)
    return inventory.load(target) if target.is_dir() and any(target.iterdir()) else None


def _same(standing: Inventory, files: Files, where: Layout, signer: str | None, limits: Policy) -> bool:
    """Whether a standing pack is intact and holds the same evidence by the same signer.

    environment.json is left out: it says when it was recorded.
    """
    before = standing.files
    volatile = where.control() | {layout.ENVIRONMENT}
    names = (before.keys() | files.keys()) - volatile
    if standing.problems or any(before.digests.get(name) != files.digests.get(name) for name in names):
        return False
    trust = Trust(frozenset({signer} if signer else ()))
    judged = verify.verify_files("", before, [], trust, verify.Demands(policy=limits))
    return not judged.findings and judged.fingerprint == signer


def _digest(files: Files) -> str:
    return f"sha256:{files.digests.get(layout.MANIFEST, sha256_bytes(b''))}"


def _free_name(target: Path, now: str) -> str:
    """``<name>.superseded-<utc>``, with a number where one second saw two packs."""
    stamp = now.replace("-", "").replace(":", "")
    name, count = f"{target.name}.superseded-{stamp}", 1
    while target.with_name(name).exists():
        count += 1
        name = f"{target.name}.superseded-{stamp}-{count}"
    return name


def _publish(part: Path, target: Path, aside: str | None, directory: int) -> None:
    if aside is not None:
        target.rename(target.with_name(aside))
    part.rename(target)
    os.fsync(directory)

"""The verifier. It trusts nothing in a pack; the rules stand here in the order of their exit codes.

====  =========================================================================================================
   3  MISSING     the directory, manifest.json and checksums.sha256 exist
   4  FORMAT      manifest.json is strict JSON of format evidence-pack-v1
   5  SIGNATURE   the signature is a signature of these manifest bytes, by the key the manifest names, and by a
                  key the caller trusts; strict: there is a signature and there is a trusted key
   6  INTEGRITY   the directory holds regular files with canonical names only; checksums.sha256 is the one that
                  the manifest names and lists exactly these files with their digests; every digest reference holds
   7  EVIDENCE    every report follows from its records under the verifier's own limits, and the verdict, its
                  text and its summaries follow from the reports (`recheck`); no evidence is older than asked
   8  INTEGRITY_ONLY  all that was looked at holds, but nobody told the verifier whom to trust, or the caller left the
                  evidence out
   0  OK          all of that holds and the signer is trusted; says nothing about PASS or FAIL
====  =========================================================================================================

The exit code is the first rule that fails; all findings are reported. What is parsed are the bytes that were hashed.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar, get_args

from evpack.catalog.policy import LEVELS, EvidenceLevel, Policy
from evpack.errors import EvpackError, IntegrityError, plain
from evpack.pack import attest, checksums, inventory, layout, manifest, signature
from evpack.pack.evidence import MALFORMED
from evpack.pack.inventory import Files
from evpack.pack.profiles import Profile
from evpack.pack.recheck import Recheck, recheck
from evpack.pack.trust import Authenticity, Trust
from evpack.processes import cores
from evpack.verdict.rules import Word

FORMAT_VERSION = "evidence-pack-verify-v1"
MOST_PROCESSES = 3
"""They take 175 MB of memory together, four 215 MB, eight 365 MB; promised are at most 200 MB on any host."""
_CLOCK_SKEW = timedelta(minutes=10)
"""How far in the future evidence may have been made before a limit on its age refuses it."""
_MARKS = {layout.README: "Verdict: **{}**", layout.PAGE: '<span class="badge {0}">{0}</span>'}
"""How files for people say the verdict; a version that says it otherwise has to know this form as well."""
_COMMENT = "<!--"
"""Begins what people do not see; no file of ours has any."""
T = TypeVar("T")


class VerifyExit(IntEnum):
    """Exit codes of `evpack verify` (2, wrong usage, is the command line's own)."""

    OK = 0
    USAGE = 2
    MISSING = 3
    FORMAT = 4
    SIGNATURE = 5
    INTEGRITY = 6
    EVIDENCE = 7
    INTEGRITY_ONLY = 8


@dataclass(frozen=True)
class Finding:
    """One broken rule."""

    code: VerifyExit
    text: str


@dataclass(frozen=True)
class Verification:
    """What a verifier found out about a pack."""

    pack: str
    strict: bool
    exit_code: VerifyExit
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    authenticity: Authenticity
    fingerprint: str | None
    """Signer, None when unsigned or when the bundle cannot be read."""
    verdict: str | None
    """PASS, FAIL or INCOMPLETE as recomputed under the pack's own limits; None when it was not reached."""
    evidence_level: str | None
    """As earned; as the manifest states it where nothing was recomputed."""
    reports: int
    """Reports that were recomputed."""
    judged_by: Mapping[str, str] | None = None
    """Tier and profile of the pack's own limits; None when nothing was recomputed."""
    verdict_by_policy: str | None = None
    """The verdict under the caller's limits; None when it was not reached or cannot be had from what is packed."""
    skipped: bool = False
    """Whether the evidence was left unexamined because the caller said so."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """manifest.json, empty when it cannot be read. Nothing in it is to be believed beyond the findings."""
    files: Files = field(default_factory=Files, repr=False)
    """What was verified."""
    signature_holds: bool = True
    """False when there is a signature that is unreadable, or not one of this manifest by the key that it names."""

    @property
    def layout(self) -> layout.Layout:
        """Layout of the pack."""
        return _layout(self.manifest)

    @property
    def strict_ready(self) -> bool:
        """Whether nothing but a trusted key could be missing for a strict verification."""
        return not self.findings and self.fingerprint is not None

    @property
    def ok(self) -> bool:
        """Whether every rule holds, the signer's identity included."""
        return self.exit_code is VerifyExit.OK

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "format_version": FORMAT_VERSION,
            "pack": self.pack,
            "ok": self.ok,
            "exit": int(self.exit_code),
            "outcome": self.exit_code.name.lower(),
            "strict": self.strict,
            "skip_verify": self.skipped,
            "errors": [{"exit": int(finding.code), "error": finding.text} for finding in self.findings],
            "warnings": list(self.warnings),
            "authenticity": self.authenticity,
            "signer_fingerprint": self.fingerprint,
            "verdict": self.verdict,
            "verdict_by_policy": self.verdict_by_policy,
            "evidence_level": self.evidence_level,
            "policy": self.judged_by,
            "verify": {"reports": self.reports},
        }


@dataclass(frozen=True)
class Demands:
    """What a caller asks of a pack beyond the rules that always hold."""

    strict: bool = False
    """An unsigned pack or a missing trusted key is an error instead of a weaker outcome."""
    policy: Policy | None = None
    """Limits to judge by; without it, the installed package's for the tier and profile of the campaign."""
    own_limits: bool = False
    """A pack that was judged by other limits than these is not refused."""
    profile: Profile = "dev"
    """What reports have to meet, where the campaign asked for less."""
    max_age: timedelta | None = None
    """Oldest evidence that is accepted."""
    skip_evidence: bool = False
    """Do not recompute: whether reports and verdict follow from the records stays open."""
    attestation: bytes | None = None
    """A DSSE envelope that must attest this pack."""


@dataclass
class _State:
    """Findings so far."""

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, code: VerifyExit, text: str) -> None:
        self.findings.append(Finding(code, text))

    def attempt(self, code: VerifyExit, action: Callable[[], T]) -> T | None:
        """The action's value, or None and a finding when it refuses its input."""
        try:
            return action()
        except EvpackError as error:
            changed = isinstance(error, IntegrityError) and code is VerifyExit.EVIDENCE
            self.add(VerifyExit.INTEGRITY if changed else code, error.what)
        except MALFORMED as error:
            self.add(code, f"content of an unexpected form ({type(error).__name__}: {error})")
        except MemoryError:  # whoever made the pack chose how much is asked for
            self.add(code, "content that asks for more memory than there is")
        return None


def verify_pack(
    pack: Path, trust: Trust | None = None, demands: Demands | None = None, *, jobs: int | None = None
) -> Verification:
    """Verify a pack on disk.

    Args:
        pack: the pack's directory.
        trust: accepted signers; none given means integrity only.
        jobs: processes to use at most; None means one per core, up to `MOST_PROCESSES`.
    """
    label = plain(pack.absolute().name)
    demands = demands or Demands()
    missing = [name for name in (layout.MANIFEST, layout.CHECKSUMS) if not _is(Path.is_file, pack / name)]
    if missing:
        what = (
            f"{plain(pack)} is not a directory that can be read"
            if not _is(Path.is_dir, pack)
            else f"{plain(pack)} has no {' and no '.join(missing)}"
        )
        return _refused(label, demands, VerifyExit.MISSING, what)
    if (size := _size(pack / layout.MANIFEST)) > manifest.MAX_MANIFEST_BYTES:  # not worth reading the rest
        what = f"{layout.MANIFEST} has {size} bytes, more than the limit of {manifest.MAX_MANIFEST_BYTES}"
        return _refused(label, demands, VerifyExit.FORMAT, what)
    found = inventory.load(pack)
    if not found.complete:
        return _refused(label, demands, VerifyExit.INTEGRITY, found.problems[-1])
    jobs = min(cores(), MOST_PROCESSES) if jobs is None else jobs
    return verify_files(label, found.files, found.problems, trust or Trust(), demands, jobs=jobs)


def verify_files(
    label: str, files: Files, problems: list[str], trust: Trust, demands: Demands, *, jobs: int = 1
) -> Verification:
    """Verify the files of a pack.

    Args:
        label: name of the pack for the output.
        problems: what the inventory refused.
    """
    state = _State()
    document = _manifest(files, state)
    signer = _signer(files, document, state)
    signature_holds = all(finding.code is not VerifyExit.SIGNATURE for finding in state.findings)
    authenticity = trust.judge(signer)
    _authenticity(authenticity, signer, trust, demands.strict, state)
    for problem in problems:
        state.add(VerifyExit.INTEGRITY, problem)
    _integrity(files, document, state)
    if demands.attestation is not None:
        envelope = demands.attestation
        state.attempt(VerifyExit.SIGNATURE, lambda: attest.check_signature(envelope, files))
    result = None
    if document is not None and not state.findings:  # bytes that nobody sealed are not worth interpreting
        if demands.skip_evidence:
            state.warnings.append("reports and verdict were not recomputed: integrity only")
        else:
            result = state.attempt(VerifyExit.EVIDENCE, lambda: _evidence(files, document, demands, jobs, state))
    proven = authenticity == "pinned" and not demands.skip_evidence
    unproven = VerifyExit.OK if proven else VerifyExit.INTEGRITY_ONLY
    code = min((finding.code for finding in state.findings), default=unproven)
    return Verification(
        pack=label,
        strict=demands.strict,
        exit_code=code,
        findings=tuple(sorted(state.findings, key=lambda finding: finding.code)),
        warnings=tuple(state.warnings),
        authenticity=authenticity,
        fingerprint=signer,
        verdict=result.verdict if result else None,
        evidence_level=_earned(document or {}, result) if result else (document or {}).get("evidence_level"),
        reports=result.reports if result else 0,
        judged_by={"tier": result.campaign.policy.tier, "profile": result.campaign.policy.profile} if result else None,
        verdict_by_policy=result.by_limits if result else None,
        skipped=demands.skip_evidence,
        manifest=document or {},
        files=files,
        signature_holds=signature_holds,
    )


def _refused(label: str, demands: Demands, code: VerifyExit, what: str) -> Verification:
    """A pack that is not worth reading to its end."""
    return Verification(label, demands.strict, code, (Finding(code, what),), (), "unsigned", None, None, None, 0)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError:  # a name too long, a directory that may not be searched
        return False


def _size(path: Path) -> int:
    """Bytes of a regular file, links not followed; 0 for anything else."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _manifest(files: Mapping[str, bytes], state: _State) -> dict[str, Any] | None:
    data = files.get(layout.MANIFEST)
    if data is None:  # there is such a name, but not a regular file
        state.add(VerifyExit.MISSING, f"{layout.MANIFEST} is no file that can be used")
        return None
    return state.attempt(VerifyExit.FORMAT, lambda: manifest.parse(data))


def _signer(files: Mapping[str, bytes], document: Mapping[str, Any] | None, state: _State) -> str | None:
    """Fingerprint of the key that signed the manifest, None without a bundle or with an unreadable one."""
    data = files.get(layout.SIGNATURE)
    if data is None:
        return None
    bundle = state.attempt(VerifyExit.SIGNATURE, lambda: signature.parse(data))
    if bundle is None:
        return None
    if layout.MANIFEST not in files:
        state.add(VerifyExit.SIGNATURE, f"{layout.SIGNATURE}: there is no {layout.MANIFEST} to check it with")
        return bundle.fingerprint
    state.attempt(VerifyExit.SIGNATURE, lambda: bundle.check(files[layout.MANIFEST]))
    named = (document or {}).get("signing_key_fingerprint", bundle.fingerprint)
    if named != bundle.fingerprint:
        state.add(
            VerifyExit.SIGNATURE,
            f"{layout.MANIFEST} names the signer {named}, but {layout.SIGNATURE} is by {bundle.fingerprint}",
        )
    return bundle.fingerprint


def _authenticity(authenticity: Authenticity, signer: str | None, trust: Trust, strict: bool, state: _State) -> None:
    if authenticity == "mismatch":
        state.add(VerifyExit.SIGNATURE, f"signed by {signer}, which is not a trusted key")
    elif authenticity == "unsigned" and (strict or trust.fingerprints):
        state.add(VerifyExit.SIGNATURE, f"no valid {layout.SIGNATURE}, and a signature is required")
    elif authenticity == "unsigned":
        state.warnings.append("not signed: anybody can have made this pack; integrity only")
    elif authenticity == "unpinned" and strict:
        state.add(VerifyExit.SIGNATURE, f"signed by {signer}, but no trusted key was given to compare it with")
    elif authenticity == "unpinned":
        state.warnings.append(f"signed by {signer}, but no trusted key was given: integrity only")


def _integrity(files: Files, document: Mapping[str, Any] | None, state: _State) -> None:
    def broken(text: str) -> None:
        state.add(VerifyExit.INTEGRITY, text)

    if layout.CHECKSUMS not in files:
        state.add(VerifyExit.MISSING, f"{layout.CHECKSUMS} is no file that can be used")
        return
    if document is not None and document["checksums_sha256_digest"] != files.digests[layout.CHECKSUMS]:
        broken(f"{layout.CHECKSUMS} is not the list whose digest {layout.MANIFEST} names")
    listed = state.attempt(VerifyExit.INTEGRITY, lambda: checksums.parse(files[layout.CHECKSUMS]))
    if listed is None:
        return
    where = _layout(document)
    for name in sorted(listed.keys() & where.control()):
        broken(f"{layout.CHECKSUMS} lists {name!r}, a control file")
    packed = files.keys() - where.control()
    for name in sorted(packed - listed.keys()):
        broken(f"{name!r}: not listed in {layout.CHECKSUMS}")
    for name in sorted(listed.keys() - packed - where.control()):
        broken(f"{name!r}: listed in {layout.CHECKSUMS}, but not there")
    for name in sorted(packed & listed.keys()):
        if files.digests[name] != listed[name]:
            broken(f"{name!r}: bytes differ from their checksum")
    for copy, original in where.copies().items():
        if files.digests.get(copy) != files.digests.get(original):
            broken(f"{copy!r}: not the copy of {original!r} that layout {where.name} asks for")
    if document is None:
        return
    for place, path, digest in manifest.references(document):
        if listed.get(path) != digest:
            broken(f"{layout.MANIFEST}: {place} names {path!r} with a digest that {layout.CHECKSUMS} does not have")
    if "artifacts" in document and document["artifacts"] != sorted(listed):
        broken(f"{layout.MANIFEST}: artifacts is not the list of packed files")


def _layout(document: Mapping[str, Any] | None) -> layout.Layout:
    return layout.LAYOUTS[(document or {}).get("layout", "v1")]


def _evidence(files: Files, document: Mapping[str, Any], demands: Demands, jobs: int, state: _State) -> Recheck:
    where = _layout(document)
    result = recheck(files, where, demands.policy, profile=demands.profile, jobs=jobs)
    raised = () if demands.own_limits else result.other_limits
    for text in (*raised, *result.errors, *result.unmet):
        state.add(VerifyExit.EVIDENCE, text)
    state.warnings += result.warnings
    expected = manifest.restated(result.campaign, files.digests, result.summary(), result.repeats)
    for key in sorted(expected.keys() & document.keys()):
        if manifest.contradicts(document[key], expected[key]):
            state.add(VerifyExit.EVIDENCE, f"{layout.MANIFEST}: {key} is not what the packed files say")
    for name, data in result.derived().items():
        place = where.place(name)
        if place not in files or files[place] != data:
            state.add(VerifyExit.EVIDENCE, f"{place}: not what recomputing gives")
    for place, mark in ((where.place(name), mark) for name, mark in _MARKS.items() if where.place(name) in files):
        text = files[place].decode("utf-8", "replace")
        said = [word for word in get_args(Word) if mark.format(word) in text]
        if _COMMENT in text or said != [result.verdict]:
            shown = "something in a comment" if _COMMENT in text else " and ".join(said) or "no verdict"
            state.add(VerifyExit.EVIDENCE, f"{place}: says {shown}, the reports give {result.verdict}")
    if not result.summary()["clean_reports"]:
        state.warnings.append("no report but those of error injections could be recomputed")
    claimed, earned = document.get("evidence_level"), _earned(document, result)
    if claimed is not None and LEVELS.index(claimed) > LEVELS.index(earned):
        state.add(VerifyExit.EVIDENCE, f"{layout.MANIFEST} claims evidence level {claimed}, earned is {earned}")
    if demands.attestation is not None:
        attest.check_statement(demands.attestation, files, where)
    if demands.max_age is not None and (problem := _stale(result.oldest, demands.max_age)):
        state.add(VerifyExit.EVIDENCE, problem)
    return result


def _earned(document: Mapping[str, Any], result: Recheck) -> EvidenceLevel:
    """The evidence level of a pack: what its files earn, as far as the manifest binds them by name."""
    bound: EvidenceLevel = "high" if {"environment", "invocation"} <= document.keys() else "medium"
    return min(result.level, bound if "subject" in document else "low", key=LEVELS.index)


def _stale(oldest: datetime | None, limit: timedelta) -> str | None:
    """Why evidence is older than asked for: what it was made of counts, not when the pack was sealed."""
    if oldest is None:
        return "some evidence does not say when it was made, so its age cannot be limited"
    age = datetime.now(UTC) - oldest
    if age > limit:
        return f"stale evidence: the oldest may be of {oldest.isoformat()}, {age} ago; accepted are {limit}"
    if -age > _CLOCK_SKEW:
        return f"evidence was made at {oldest.isoformat()}, which is in the future"
    return None

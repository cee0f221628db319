"""An in-toto attestation of a pack: a test-result statement about its manifest, signed in a DSSE envelope.

The statement follows from the pack byte for byte, and the signer is the key that sealed the pack; a verifier makes the
statement again and compares. It stands beside the pack, never inside: a sealed pack is never changed.
https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from evpack.errors import BadInput, EvidenceError, IntegrityError
from evpack.files import canonical_json, parse_json, pretty_json, read_regular
from evpack.pack import keys, layout, signature
from evpack.pack.cells import cell_states
from evpack.pack.inventory import Files
from evpack.pack.layout import Layout

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 4 << 20
"""Largest envelope that is read; 64 models with 20 scenarios come to about 100 kB."""


def statement(files: Files, where: Layout) -> bytes:
    """The statement about a pack, canonical JSON: equal packs give equal bytes.

    A verdict other than PASS is FAILED: the predicate knows no incomplete result, and a warning would be a pass.

    Raises:
        EvidenceError: when the pack has no readable verdict.
    """
    verdict, summary = (_document(files, where.place(name)) for name in (layout.VERDICT, layout.SCENARIO_SUMMARY))
    gating = [cell for cell in cell_states(verdict, summary) if cell.gates]
    tests = {f"{cell.model}/{cell.scenario}": cell.state == "met" for cell in gating}
    inputs = (layout.PLAN, layout.SETTINGS, layout.POLICY, layout.SCENARIOS)
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [_resource(files, layout.MANIFEST)],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "result": "PASSED" if verdict.get("verdict") == "PASS" else "FAILED",
                "configuration": [_resource(files, where.place(name)) for name in inputs],
                "passedTests": sorted(name for name, met in tests.items() if met),
                "failedTests": sorted(name for name, met in tests.items() if not met),
            },
        }
    )


def sign(files: Files, where: Layout, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a pack's statement.

    Raises:
        BadInput: when the key is not the one that sealed the pack.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # public by its documentation

    signer = sealer(files)
    if signer is None or keys.fingerprint(signer) != keys.fingerprint(key.public_key()):
        raise BadInput(
            f"the pack is signed by {keys.fingerprint(signer) if signer else 'nobody'}, "
            f"not by the given key {keys.fingerprint(key.public_key())}",
            "attest with the key that sealed the pack",
        )
    envelope = Envelope(statement(files, where), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key, _key(signer)))
    return pretty_json(envelope.to_dict())


def check_signature(data: bytes, files: Files) -> None:
    """Check that an envelope carries exactly one signature, by the key that sealed the pack.

    Raises:
        IntegrityError: when it does not.
        EvidenceError: when it is not an envelope.
    """
    from securesystemslib.exceptions import VerificationError

    signer, envelope = sealer(files), _parse(data)
    if signer is None:
        raise IntegrityError("the attestation cannot be checked: the pack is not signed")
    try:
        if len(envelope.signatures) != 1:
            raise IntegrityError(f"the attestation has {len(envelope.signatures)} signatures instead of one")
        envelope.verify([_key(signer)], 1)
    except VerificationError as error:
        raise IntegrityError("the attestation is not signed by the key that sealed the pack") from error


def check_statement(data: bytes, files: Files, where: Layout) -> None:
    """Check that what is attested is what the pack says.

    Raises:
        EvidenceError: when it is not.
    """
    envelope = _parse(data)
    if envelope.payload_type != PAYLOAD_TYPE or envelope.payload != statement(files, where):
        raise EvidenceError("the attestation says something else than this pack")


def is_envelope(path: Path) -> bool:
    """Whether a file is an attestation."""
    try:
        return bool(_parse(read(path)).payload_type == PAYLOAD_TYPE)
    except (BadInput, EvidenceError):
        return False


def read(path: Path) -> bytes:
    """The bytes of an attestation file.

    Raises:
        BadInput: when it cannot be read, is too large or no file.
    """
    try:
        data = read_regular(path, MAX_ENVELOPE_BYTES)
    except EvidenceError as error:
        raise BadInput(f"attestation {error.what}", "check the path") from error
    except OSError as error:
        raise BadInput(f"attestation {path} cannot be read ({error.strerror})", "check the path") from error
    if len(data) > MAX_ENVELOPE_BYTES:
        raise BadInput(f"attestation {path} is larger than {MAX_ENVELOPE_BYTES} bytes", "check the path")
    return data


def sealer(files: Files) -> Ed25519PublicKey | None:
    """The key in a pack's signature bundle, None when it has none."""
    return signature.parse(files[layout.SIGNATURE]).key if layout.SIGNATURE in files else None


def _parse(data: bytes) -> Any:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import Error

    value = parse_json(data, "attestation", MAX_ENVELOPE_BYTES)
    try:
        return Envelope.from_dict(value)
    except (Error, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvidenceError(f"the attestation is not a DSSE envelope ({type(error).__name__})") from error


def _key(key: Ed25519PublicKey) -> Any:
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # public by its documentation

    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return SSlibKey(keys.fingerprint(key), "ed25519", "ed25519", {"public": raw.hex()})


def _document(files: Files, name: str) -> Any:
    if name not in files:
        raise EvidenceError(f"{name} is missing, so there is nothing to attest")
    return parse_json(files[name], name)


def _resource(files: Files, name: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": files.digests[name]}}

"""Mutations of whole packs and of what the parsers read. A few in CI; `make fuzz` takes thousands and ten minutes.

EVPACK_FUZZ_MUTATIONS and EVPACK_FUZZ_SECONDS set how many and how long. Without seconds the inputs are the same in
every run, as in CI; with them every run, and every round of a parser, draws others.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evpack.errors import EvpackError
from evpack.evaluation.records import WindowRecords
from evpack.evaluation.report import check_report
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import attest, checksums, inventory, layout, manifest, schemas, signature
from evpack.pack.build import BuiltPack
from evpack.pack.evidence import MALFORMED
from evpack.pack.inventory import Files
from evpack.pack.recheck import recheck
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_files

MUTATIONS = int(os.environ.get("EVPACK_FUZZ_MUTATIONS", "200"))
SECONDS = float(os.environ.get("EVPACK_FUZZ_SECONDS", "0"))
ANY = st.integers(0, 2**31)
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def drawn(examples: int) -> settings:
    """That many examples; a failing one is printed and need not be stored."""
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=CHECKS, database=None, derandomize=not SECONDS
    )


@pytest.fixture(scope="module")
def contents(good_pack: BuiltPack) -> dict[str, bytes]:
    return dict(inventory.load(good_pack.path).files)


def mutated(data: bytes, kind: str, at: int, length: int, piece: bytes) -> bytes:
    at = at % (len(data) + 1)
    end = min(at + length % 9 + 1, len(data))
    match kind:
        case "flip":
            return data[:at] + bytes(byte ^ 1 << length % 8 for byte in data[at : at + 1]) + data[at + 1 :]
        case "insert":
            return data[:at] + piece + data[at:]
        case "delete":
            return data[:at] + data[end:]
        case "truncate":
            return data[:at]
        case "swap":
            return data[end:] + data[:end]
        case _:
            return data[:at] + data[at:end] * 2 + data[end:]


KINDS = st.sampled_from(["flip", "insert", "delete", "truncate", "swap", "repeat"])
PIECES = st.sampled_from(
    [b"\x00", b"0", b"1e999", b"NaN", b'"', b"{", b"[" * 70, b",", b"\xff", b"\r\n", b"null", b"-"]
)


@drawn(MUTATIONS)
@given(which=ANY, kind=KINDS, at=ANY, length=ANY, piece=PIECES)
def test_no_mutation_of_any_file_verifies(
    contents: dict[str, bytes], good_pack: BuiltPack, which: int, kind: str, at: int, length: int, piece: bytes
) -> None:
    name = sorted(contents)[which % len(contents)]
    changed = mutated(contents[name], kind, at, length, piece)
    if changed == contents[name]:
        return
    trust = Trust(frozenset({str(good_pack.fingerprint)}))
    result = verify_files("pack", Files(content=contents | {name: changed}), [], trust, Demands(strict=True))
    assert result.exit_code in (4, 5, 6) and result.findings


PARSERS = {
    layout.MANIFEST: manifest.parse,
    layout.CHECKSUMS: checksums.parse,
    layout.SIGNATURE: signature.parse,
    layout.REPORT: lambda data: check_report(data),
    layout.RECORDS: lambda data: WindowRecords.parse(data, "records"),
    layout.SPECTRAL: lambda data: SpectralRecords.parse(data, "spectral"),
    layout.ACTIVATIONS: lambda data: ActivationRecords.parse(data, "activations"),
    layout.RUNTIME: lambda data: schemas.checked(data, "runtime", "runtime"),
    layout.BASELINE_REPORT: lambda data: schemas.checked(data, "baseline", "baseline_report"),
    "schedule.json": lambda data: schemas.checked(data, "schedule", "schedule"),
    "variants/quant_clean.json": lambda data: schemas.checked(data, "variant", "variant"),
    "attestation": lambda data: attest.check_signature(data, Files(content={})),
}


def seed(contents: dict[str, bytes], name: str) -> bytes:
    return next((data for path, data in sorted(contents.items()) if path.endswith(name)), b'{"payload": "", "x": []}')


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_no_parser_crashes(contents: dict[str, bytes], name: str) -> None:
    """Mutated input is parsed or refused by a typed error, never anything else."""
    original = seed(contents, name)
    until = time.monotonic() + SECONDS / len(PARSERS)
    examples, rounds, seen = max(MUTATIONS // 10, 20), 0, set()

    @drawn(examples)
    @given(st.lists(st.tuples(KINDS, ANY, ANY, PIECES | st.binary(max_size=12)), min_size=1, max_size=4))
    def attack(steps: list[tuple[str, int, int, bytes]]) -> None:
        data = original
        for step in steps:
            data = mutated(data, *step)
        seen.add(hash(data))
        with contextlib.suppress(EvpackError):
            PARSERS[name](data)

    while rounds == 0 or time.monotonic() < until:
        attack()
        rounds += 1
    assert len(seen) > examples * rounds / 4, "the same inputs again and again"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**6, 2**31, 2**63, 10**12, 10**18, 10**40, 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
INTERPRETED = ("state/", "results/", "metadata/", "reports/")


@drawn(max(MUTATIONS // 4, 50))
@given(which=ANY, way=st.lists(ANY, min_size=1, max_size=5), value=json_values)
def test_any_value_anywhere_in_sealed_evidence_gives_an_outcome(
    contents: dict[str, bytes], which: int, way: list[int], value: object
) -> None:
    """What a holder of the key could seal: recomputing ends in errors or not, but it ends."""
    names = [n for n in sorted(contents) if n.endswith(".json") and n.startswith(INTERPRETED)]
    name = names[which % len(names)]
    document = node = json.loads(contents[name])
    for step in way:
        keys = sorted(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        if not keys:
            break
        key = list(keys)[step % len(keys)]
        if step == way[-1] or not isinstance(node[key], dict | list):
            node[key] = value
            break
        node = node[key]
    changed = contents | {name: json.dumps(document).encode()}
    with contextlib.suppress(EvpackError, *MALFORMED):  # the verifier turns these into a finding
        recheck(Files(content=changed), layout.LAYOUTS["v1"])


def test_every_round_of_a_long_run_draws_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_rounds() -> tuple[int, int]:
        seen: list[int] = []

        @drawn(20)
        @given(ANY)
        def attack(value: int) -> None:
            seen.append(value)

        attack()
        attack()
        return len(set(seen)), len(seen)

    distinct, calls = two_rounds()
    assert SECONDS or distinct <= calls / 2, "in CI every round is the same"
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 600.0)
    distinct, calls = two_rounds()
    assert distinct > 0.6 * calls


def test_the_shipped_numbers_are_those_of_the_target() -> None:
    """`make fuzz` asks for at least 2,000 mutations and ten minutes of parsers."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert "EVPACK_FUZZ_MUTATIONS=2000" in makefile and "EVPACK_FUZZ_SECONDS=600" in makefile

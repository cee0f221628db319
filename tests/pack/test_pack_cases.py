"""Every directory of tests/packs is an attack on a good pack: what is done to it and the exit code that must follow.

A case.json says `actions` (in order), whom the verifier trusts (`signer`, `stranger`, `nobody`), whether it is strict,
the `exit` it must end with, and `max_age_days` where it limits the age of evidence. There is no code per case; this
module carries out the actions. Sealing actions: `rebind` renews the digests inside reports, `seal` renews checksums,
manifest and signature as the holder of a key could, `bind` all but the checksums, `sign` the signature alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from evpack.files import parse_json, pretty_json, sha256_bytes
from evpack.pack import checksums, keys, layout, manifest, signature
from evpack.pack.build import BuiltPack
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_pack

CASES = sorted((Path(__file__).parent.parent / "packs").glob("*_fail"))


class Forger:
    """A copy of a good pack in the hands of somebody who holds keys."""

    def __init__(self, root: Path, holders: dict[str, Path]) -> None:
        self.root = root
        self.holders = holders

    def apply(self, action: dict[str, Any]) -> None:
        """Carry out one action."""
        match action:
            case {"op": "seal", "by": holder}:
                self._relist()
                self._bind()
                self._sign(holder)
            case {"op": "bind", "by": holder}:
                self._bind()
                self._sign(holder)
            case {"op": "sign", "by": holder}:
                self._sign(holder)
            case {"op": "relist"}:
                self._relist()
            case {"op": "rebind"}:
                self._rebind()
            case {"op": "sign_other"}:
                other = signature.sign(b'{"format": "evidence-pack-v1"}\n', keys.load_private(self.holders["signer"]))
                (self.root / layout.SIGNATURE).write_bytes(other)
            case {"op": "unreference", "path": path}:
                value = self._json(layout.MANIFEST)
                value["materials"] = [entry for entry in value["materials"] if entry["path"] != path]
                self._put(layout.MANIFEST, value)
            case {"op": op, "file": name}:
                self._on_file(op, self.root / name, action)
            case _:
                raise AssertionError(f"unknown action {action}")

    def _on_file(self, op: str, path: Path, action: dict[str, Any]) -> None:
        match op:
            case "flip":
                data = bytearray(path.read_bytes())
                data[action["at"]] ^= 1
                path.write_bytes(data)
            case "truncate":
                path.write_bytes(path.read_bytes()[: action["at"]])
            case "grow":
                os.truncate(path, action["size"])  # sparse
            case "append":
                path.write_bytes(path.read_bytes() + action["text"].encode())
            case "prepend":
                path.write_bytes(action["text"].encode() + path.read_bytes())
            case "double":
                path.write_bytes(path.read_bytes() * 2)
            case "crlf":
                path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
            case "write":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(action["text"].encode())
            case "replace":
                text = path.read_text(encoding="utf-8")
                assert action["old"] in text
                path.write_text(text.replace(action["old"], action["new"]), encoding="utf-8")
            case "sub":
                text, count = re.subn(action["pattern"], action["new"], path.read_text(encoding="utf-8"), count=1)
                assert count == 1
                path.write_text(text, encoding="utf-8")
            case "set" | "drop":
                self._edit(path, op, action)
            case "remove":
                path.unlink()
            case "rename":
                path.rename(self.root / action["to"])
            case "copy":
                (self.root / action["to"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.root / action["to"])
            case "swap":
                other = self.root / action["to"]
                ours, theirs = path.read_bytes(), other.read_bytes()
                path.write_bytes(theirs)
                other.write_bytes(ours)
            case "symlink":
                path.symlink_to(action["to"])
            case "link_out" | "hardlink":
                outside = self.root.parent / "outside"
                path.rename(outside)
                path.symlink_to(outside) if op == "link_out" else os.link(outside, path)
            case "fifo":
                os.mkfifo(path)
            case "mkdir":
                path.mkdir()
            case _:
                raise AssertionError(f"unknown action {action}")

    def _edit(self, path: Path, op: str, action: dict[str, Any]) -> None:
        value = node = parse_json(path.read_bytes(), path.name)
        *way, last = action["at"]
        for key in way:
            node = node[key]
        node[last]  # an action on something that is not there would prove nothing
        if op == "drop":
            del node[last]
        else:
            assert node[last] != action["value"]
            node[last] = action["value"]
        path.write_bytes(pretty_json(value))

    def _relist(self) -> None:
        (self.root / layout.CHECKSUMS).write_bytes(checksums.render(self._digests()))

    def _bind(self) -> None:
        value, digests = self._json(layout.MANIFEST), self._digests()
        value["checksums_sha256_digest"] = sha256_bytes((self.root / layout.CHECKSUMS).read_bytes())
        value["artifacts"] = sorted(digests)
        for entry in [
            value["subject"],
            value["environment"],
            value["invocation"]["config_source"],
            *value["materials"],
        ]:
            entry["digest"] = f"sha256:{digests[entry['path']]}"
        self._put(layout.MANIFEST, value)

    def _sign(self, holder: str) -> None:
        key = keys.load_private(self.holders[holder])
        path = self.root / layout.MANIFEST
        if holder != "signer":
            self._put(layout.MANIFEST, self._json(layout.MANIFEST) | {"signing_key_fingerprint": fingerprint(key)})
        (self.root / layout.SIGNATURE).write_bytes(signature.sign(path.read_bytes(), key))

    def _rebind(self) -> None:
        for path in self.root.rglob(layout.REPORT):
            report = parse_json(path.read_bytes(), path.name) if b'"v1", "' not in path.read_bytes() else None
            if report is not None:
                self._renew(report, path)
                path.write_bytes(pretty_json(report))
            runtime = path.with_name(layout.RUNTIME)
            value = parse_json(runtime.read_bytes(), runtime.name)
            value["report"]["sha256"] = sha256_bytes(path.read_bytes())
            runtime.write_bytes(pretty_json(value))

    def _renew(self, report: dict[str, Any], path: Path) -> None:
        """Digests of the raw figures that a report and its guards' blocks name."""
        model = path.relative_to(self.root).parts[1]
        for block in [report, *(value for value in report.values() if isinstance(value, dict) and "records" in value)]:
            own, theirs = block["records"]["subject"], block["records"]["baseline"]
            files = (own, path.with_name(own["path"])), (theirs, self.root / layout.in_pack(model, theirs["path"]))
            for named, file in files:
                if file.is_file():
                    named["sha256"] = sha256_bytes(file.read_bytes())

    def _digests(self) -> dict[str, str]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        named = {path.relative_to(self.root).as_posix(): path for path in files}
        return {name: sha256_bytes(path.read_bytes()) for name, path in named.items() if name not in layout.CONTROL}

    def _json(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = parse_json((self.root / name).read_bytes(), name)
        return value

    def _put(self, name: str, value: Any) -> None:
        (self.root / name).write_bytes(pretty_json(value))


def fingerprint(key: Any) -> str:
    return keys.fingerprint(key.public_key())


@pytest.fixture(scope="session")
def holders(signing_key: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    stranger = tmp_path_factory.mktemp("stranger") / "key"
    keys.write_keypair(stranger)
    return {"signer": signing_key, "stranger": stranger}


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_case(case: Path, good_pack: BuiltPack, holders: dict[str, Path], tmp_path: Path) -> None:
    rule = json.loads((case / "case.json").read_text(encoding="utf-8"))
    root = tmp_path / "pack"
    shutil.copytree(good_pack.path, root)
    forger = Forger(root, holders)
    for action in rule["actions"]:
        forger.apply(action)
    trusted = [holders[rule["trust"]]] if rule["trust"] in holders else []
    trust = Trust(frozenset(fingerprint(keys.load_private(path)) for path in trusted))
    oldest = timedelta(days=rule["max_age_days"]) if "max_age_days" in rule else None
    result = verify_pack(root, trust, Demands(strict=rule["strict"], max_age=oldest))
    assert result.exit_code == rule["exit"], result.to_json()
    assert not result.ok
    assert result.findings or result.warnings


def test_the_good_pack_verifies_and_sealing_it_again_changes_nothing(
    good_pack: BuiltPack, holders: dict[str, Path], tmp_path: Path
) -> None:
    """The forger's sealing is sound: only the action before it can be why a case fails."""
    trust = Trust(frozenset({str(good_pack.fingerprint)}))
    assert verify_pack(good_pack.path, trust, Demands(strict=True)).exit_code == 0
    root = tmp_path / "pack"
    shutil.copytree(good_pack.path, root)
    forger = Forger(root, holders)
    for action in ({"op": "rebind"}, {"op": "seal", "by": "signer"}):
        forger.apply(action)
    assert verify_pack(root, trust, Demands(strict=True)).exit_code == 0


def test_every_case_says_why_in_one_line() -> None:
    assert len(CASES) > 80
    for case in CASES:
        assert len((case / "README.md").read_text(encoding="utf-8").splitlines()) == 1
        assert sorted(path.name for path in case.iterdir()) == ["README.md", "case.json"]


def test_no_evidence_level_is_earned_without_clean_reports() -> None:
    level = manifest.evidence_level(clean_reports=0, failed_reports=0, source=True, environment=True, cap="high")
    assert level == "low"

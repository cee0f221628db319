"""Our packs read by somebody else: the format's own rules, written again here from its description alone.

Nothing of the pack room is used, so that a convenience of ours cannot hide a departure from evidence-pack-v1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pack_campaign import Campaign

from evpack.pack.build import BuiltPack, build

PREFIXED = re.compile(r"sha256:[0-9a-f]{64}")
CONTROL = {"checksums.sha256", "manifest.json", "manifest.signature.json"}
CONTROL |= {f"metadata/{name}" for name in CONTROL}
RUNTIME_KEYS = {"manifest_version", "generated_at_utc", "verifier_contract_version", "report", "config"}
RUNTIME_KEYS |= {"execution_mode", "runtime", "context"}
RUNTIME_FLAGS = ("container_execution", "allow_network", "allow_remote_code", "allow_third_party_plugins")


@pytest.fixture(params=["v1", "v2"])
def pack(request: pytest.FixtureRequest, campaign: Campaign, signing_key: Path) -> Path:
    built: BuiltPack = build(campaign.run, key=signing_key, form=request.param)
    return built.path


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def references(manifest: dict[str, Any]) -> list[dict[str, str]]:
    named = [manifest["subject"], manifest["environment"], manifest["invocation"]["config_source"]]
    return [*named, *manifest["materials"]]


def test_manifest(pack: Path) -> None:
    manifest = load(pack / "manifest.json")
    assert manifest["format"] == "evidence-pack-v1"
    assert manifest["checksums_sha256"] == "checksums.sha256"
    assert manifest["checksums_sha256_digest"] == sha256(pack / "checksums.sha256")
    assert manifest["network_mode"] in ("offline", "online") and manifest["evidence_level"] in ("low", "medium", "high")
    assert isinstance(manifest["repeats"], int) and manifest["repeats"] >= 0
    assert {"id", "name"} <= manifest["builder"].keys() and manifest["subject"]["name"] == "final_verdict"
    assert [m["model_id"] for m in manifest["models"]] == sorted(m["model_id"] for m in manifest["models"])
    assert all(isinstance(m["revision"], str) for m in manifest["models"])
    for entry in references(manifest):
        assert PREFIXED.fullmatch(entry["digest"]) and f"sha256:{sha256(pack / entry['path'])}" == entry["digest"]
        assert not Path(entry["path"]).is_absolute()
    assert all(re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", material["name"]) for material in manifest["materials"])
    source, machine = manifest["invocation"]["config_source"], manifest["environment"]
    assert re.fullmatch("[0-9a-f]{40}", source["commit"]) and isinstance(source["dirty"], bool)
    assert {"recorded_at", "platform", "python_version"} <= machine.keys()
    assert None not in source.values() and None not in machine.values(), "what is not known is left out"


def test_checksums(pack: Path) -> None:
    listed = {}
    for line in (pack / "checksums.sha256").read_text().splitlines():
        match = re.fullmatch("([A-Fa-f0-9]{64}) [ *](.+)", line)
        assert match is not None
        listed[match[2]] = match[1]
    there = {path.relative_to(pack).as_posix() for path in pack.rglob("*") if path.is_file()}
    assert listed.keys() == there - CONTROL and list(listed) == sorted(listed)
    assert load(pack / "manifest.json")["artifacts"] == sorted(listed)
    for name, digest in listed.items():
        assert sha256(pack / name) == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "--strict", "--check", "checksums.sha256"], cwd=pack, check=True)


def test_signature(pack: Path) -> None:
    bundle = load(pack / "manifest.signature.json")
    assert (bundle["format"], bundle["algorithm"]) == ("evidence-pack-signature-v1", "ed25519")
    assert bundle["public_key"]["encoding"] == "pem" and bundle["signature"]["encoding"] == "base64"
    key = load_pem_public_key(bundle["public_key"]["value"].encode())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(base64.b64decode(bundle["signature"]["value"]), (pack / "manifest.json").read_bytes())
    fingerprint = "sha256:" + hashlib.sha256(key.public_bytes_raw()).hexdigest()
    assert bundle["signing_key_fingerprint"] == load(pack / "manifest.json")["signing_key_fingerprint"] == fingerprint
    text = (pack / "manifest.signature.json").read_text()
    assert text == json.dumps(bundle, sort_keys=True, separators=(",", ":")) + "\n"


def reports(pack: Path) -> list[Path]:
    return sorted((pack / "reports").rglob("evaluation.report.json"))


def test_reports_meet_the_contract_of_the_reference(pack: Path) -> None:
    assert len(reports(pack)) == 10
    for path in reports(pack):
        report = load(path)
        metric, windows = report["primary_metric"], report["dataset"]["windows"]
        stats = windows["stats"]
        assert report["schema_version"] == "v1" and len(report["run_id"]) >= 4 and report["dataset"]["seq_len"] >= 1
        assert {"artifacts", "plugins", "meta", "dataset", "primary_metric"} <= report.keys()
        reference = report["baseline_ref"]["primary_metric"]["final"]
        if metric["final"] is None:
            assert metric["invalid"] and metric["degraded_reason"].startswith("non_finite_pm")
        else:
            assert math.isclose(metric["ratio_vs_baseline"], metric["final"] / reference, rel_tol=1e-6)
            for log, shown in zip(metric["ci"], metric["display_ci"], strict=True):
                assert abs(shown - math.exp(log)) <= 5e-4 * max(1, shown)
            low, high = metric["display_ci"]
            assert low <= metric["ratio_vs_baseline"] <= high
        assert stats["window_pairing_reason"] is None and stats["paired_windows"] > 0
        assert stats["window_match_fraction"] >= 0.999999 and stats["window_overlap_fraction"] <= 1e-9
        for arm in ("preview", "final"):
            assert stats["coverage"][arm]["used"] == windows[arm]
        assert stats["paired_windows"] == windows["preview"]
        assert all(isinstance(flag, bool) for flag in report["validation"].values())
        provider = report["provenance"]["provider_digest"]
        assert all(re.fullmatch("[0-9a-z]{64}", provider[name]) for name in ("ids_sha256", "tokenizer_sha256"))


def test_a_runtime_manifest_stands_beside_every_report(pack: Path) -> None:
    for path in reports(pack):
        value = load(path.with_name("runtime.manifest.json"))
        assert value.keys() <= RUNTIME_KEYS
        assert (value["manifest_version"], value["verifier_contract_version"]) == (1, "runtime-manifest-v1")
        assert value["report"]["sha256"] == sha256(path) and value["config"]["source"] in ("file", "inline", "missing")
        assert value["execution_mode"] in ("container", "host-bypass")
        runtime = value["runtime"]
        assert isinstance(runtime["image_ref"], str) and runtime["image_ref"]
        assert runtime["image_digest"] is None or PREFIXED.fullmatch(runtime["image_digest"])
        assert all(isinstance(runtime[name], bool) for name in RUNTIME_FLAGS) and len(runtime) == 2 + len(RUNTIME_FLAGS)
        assert value["report"].keys() == {"path", "filename", "sha256"}
        assert value["config"].keys() == {"path", "sha256", "source"}


def test_the_files_the_format_names_are_where_it_says(pack: Path) -> None:
    two = load(pack / "manifest.json").get("layout") == "v2"
    results, state = ("results/verdicts", "metadata") if two else ("results", "state")
    for name in ("final_verdict.json", "final_verdict.txt", "category_summary.json", "scenario_signal_summary.json"):
        assert (pack / results / name).is_file()
    for name in ("model_revisions.json", "scenarios.json"):
        assert (pack / state / name).is_file()
    for name in ("source_repo.json", "environment.json"):
        assert (pack / "metadata" / name).is_file()
    summary = load(pack / "results/verification_summary.json")
    assert {"clean_reports", "error_injection_reports", "failed_reports", "policy_profile"} == summary.keys()
    assert summary["failed_reports"] == 0 and summary["clean_reports"] > 0
    for path in reports(pack):
        outcome = load(path.with_name("verify.json"))
        assert outcome["format_version"] == "verify-v1" and outcome["summary"] == {"ok": True, "reason": "ok"}

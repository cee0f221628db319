"""manifest.json, format evidence-pack-v1: what the pack is, and the digest of the list of its files.

Order of sealing: checksums.sha256 over all files, then the manifest with the digest of that list, then the
signature over the manifest. Whoever trusts the signature therefore trusts every byte of the pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evpack import __version__
from evpack.catalog.policy import LEVELS, EvidenceLevel
from evpack.files import Json, canonical_json, sha256_bytes
from evpack.pack import layout, schemas
from evpack.pack.evidence import Campaign

FORMAT = "evidence-pack-v1"
MAX_MANIFEST_BYTES = 32 << 20
"""Largest manifest that is parsed; with 100,000 artifacts of ordinary length it has about 8 MB."""

MODEL_LICENSES = {
    "mistralai/Mistral-7B-v0.1": "Apache-2.0",
    "HuggingFaceTB/SmolLM2-135M": "Apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Apache-2.0",
}
"""Licences that are known for certain; other models have no entry in the manifest."""


def evidence_level(
    *, clean_reports: int, failed_reports: int, source: bool, environment: bool, cap: EvidenceLevel
) -> EvidenceLevel:
    """How much a pack can show: medium needs clean reports that all follow from their records, high provenance too.

    Args:
        clean_reports: reports outside error injections that were recomputed.
        failed_reports: reports that are unreadable or do not follow from their records.
        source: whether metadata/source_repo.json is packed.
        environment: whether metadata/environment.json is packed.
        cap: the most that the policy allows (profile `small`: medium).
    """
    level: EvidenceLevel = "low"
    if clean_reports and not failed_reports:
        level = "high" if source and environment else "medium"
    return min(level, cap, key=LEVELS.index)


_PARAMETERS = ("tier", "profile", "dataset", "seq_len", "preview_windows", "final_windows", "guards_order")
"""Settings that a manifest repeats."""
_MATERIALS = {
    "plan": layout.PLAN,
    "settings": layout.SETTINGS,
    "policy": layout.POLICY,
    "scenarios": layout.SCENARIOS,
    "tuned_edit_params": layout.TUNED,
    "model_revisions": layout.REVISIONS,
    "verification_summary": layout.VERIFICATION,
    "determinism_repeats": layout.REPEATS,
}


@dataclass(frozen=True)
class Facts:
    """What the manifest says beyond packed files."""

    generated_at: str
    level: EvidenceLevel
    label: str
    """Name of the run directory, without its path."""
    fingerprint: str | None
    supersedes: dict[str, str] | None


def build(facts: Facts, restated: Mapping[str, Json], digests: Mapping[str, str], checksums: bytes) -> dict[str, Any]:
    """The manifest of a pack.

    Args:
        restated: `restated` of the pack's files.
        digests: hex SHA-256 of every packed file but the control files.
        checksums: the bytes of checksums.sha256.
    """
    value: dict[str, Any] = {
        "format": FORMAT,
        "checksums_sha256": layout.CHECKSUMS,
        "checksums_sha256_digest": sha256_bytes(checksums),
        "generated_at": facts.generated_at,
        **restated,
        "evidence_level": facts.level,
        "run_dir": facts.label,
        "builder": {"id": "evpack", "name": "evpack build", "version": __version__},
        "artifacts": sorted(digests),
        "model_licenses": {model: MODEL_LICENSES[model] for model in restated["model_list"] if model in MODEL_LICENSES},
    }
    if facts.fingerprint:
        value["signing_key_fingerprint"] = facts.fingerprint
    if facts.supersedes:
        value["supersedes"] = facts.supersedes
    return value


def restated(
    campaign: Campaign, digests: Mapping[str, str], verification: Json, determinism_repeats: Json
) -> dict[str, Json]:
    """What a manifest repeats from packed files for readers' convenience; a verifier holds it against them.

    Args:
        digests: hex SHA-256 of every packed file but the control files.
        verification: verification_summary.json.
        determinism_repeats: determinism_repeats.json, null without it.
    """
    plan, settings = campaign.plan, campaign.settings
    models = sorted(plan.models, key=lambda model: model.id)
    frozen = settings.to_json()

    def reference(name: str) -> dict[str, str]:
        path = campaign.at(name)
        return {"path": path, "digest": f"sha256:{digests[path]}"} if path in digests else {}

    return {
        "layout": campaign.layout.name,
        "suite": plan.suite,
        "model_list": [model.id for model in models],
        "models": [{"model_id": model.id, "revision": model.source.revision} for model in models],
        "verification": verification,
        "network_mode": "online" if settings.net else "offline",
        "determinism": settings.determinism,
        "repeats": settings.repeats,
        "determinism_repeats": determinism_repeats,
        "subject": {"name": "final_verdict", **reference(layout.VERDICT)},
        "invocation": {
            "config_source": {**_known(campaign, layout.SOURCE), **reference(layout.SOURCE)},
            "parameters": {name: frozen[name] for name in _PARAMETERS}
            | {"settings_digest": f"sha256:{plan.settings_digest}", "plan_digest": f"sha256:{campaign.digests[0]}"},
        },
        "environment": {**_known(campaign, layout.ENVIRONMENT), **reference(layout.ENVIRONMENT)},
        "materials": [{"name": name, **there} for name, path in _MATERIALS.items() if (there := reference(path))],
    }


def contradicts(stated: Json, expected: Json) -> bool:
    """Whether a manifest says otherwise; what it leaves out, and what is not known here, contradicts nothing."""
    if isinstance(stated, Mapping) and isinstance(expected, Mapping):
        return any(contradicts(stated[key], expected[key]) for key in stated.keys() & expected.keys())
    return canonical_json(stated) != canonical_json(expected)


def parse(data: bytes) -> dict[str, Any]:
    """Parse a manifest and check it against the shipped schema; unknown keys are allowed.

    Raises:
        EvidenceError: naming the field.
    """
    return schemas.checked(data, layout.MANIFEST, "manifest", MAX_MANIFEST_BYTES)


def references(value: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every digest reference of a parsed manifest: where it stands, the path, the hex digest."""
    named = [(key, value.get(key)) for key in ("subject", "environment")]
    named.append(("invocation.config_source", value.get("invocation", {}).get("config_source")))
    named += [(f"materials[{entry['name']}]", entry) for entry in value.get("materials", [])]
    for where, entry in named:
        if entry is not None:
            yield where, entry["path"], entry["digest"].removeprefix("sha256:")


def _known(campaign: Campaign, name: str) -> dict[str, Json]:
    """A packed document without what is not known: the format's optional fields are left out, not null."""
    value = campaign.document(name) if campaign.has(name) else {}
    return {key: inner for key, inner in value.items() if inner is not None}

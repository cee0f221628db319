"""runtime.manifest.json: what ran where, bound to the report beside it by digest."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evpack import __version__
from evpack.evaluation.report import REPORT_NAME
from evpack.evaluation.scoring import versions
from evpack.files import read_json, sha256_bytes, sha256_file
from evpack.pack.provenance import NO_IMAGE
from evpack.steps.base import StepContext

IMAGE_ENV = "EVPACK_IMAGE"
"""Set in a container, to the pinned image it was started from."""


def runtime_facts(ctx: StepContext) -> dict[str, Any]:
    """Versions, devices, threads, network mode and code revision of this process."""
    import safetensors
    import tokenizers
    import torch

    source = read_json(ctx.run.source_repo) if ctx.run.source_repo.is_file() else {}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "execution": "container" if os.environ.get(IMAGE_ENV) else "host-process",
        "packages": {
            "evpack": __version__,
            **versions(),
            "safetensors": safetensors.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices or ["cpu"],
        "threads": torch.get_num_threads(),
        "determinism": ctx.settings.determinism,
        "network": "online" if ctx.settings.net else "offline",
        "code": {key: source.get(key) for key in ("commit", "dirty")},
    }


def runtime_manifest(
    ctx: StepContext, facts: Mapping[str, Any], report: bytes, config: Path, now: str
) -> dict[str, Any]:
    """The manifest of one report; the keys are the reference's, what is more stands in `context`.

    Args:
        report: the report's bytes.
        config: the preset that the evaluation used.
        now: UTC time.
    """
    image = os.environ.get(IMAGE_ENV)
    return {
        "manifest_version": 1,
        "generated_at_utc": now,
        "verifier_contract_version": "runtime-manifest-v1",
        "report": {"path": REPORT_NAME, "filename": REPORT_NAME, "sha256": sha256_bytes(report)},
        "config": {
            "path": config.relative_to(ctx.run.root).as_posix(),
            "sha256": sha256_file(config),
            "source": "file",
        },
        "execution_mode": "container" if image else "host-bypass",
        "runtime": {
            "image_ref": image or NO_IMAGE,
            "image_digest": image and image[image.index("sha256:") :],
            "container_execution": image is not None,
            "allow_network": ctx.settings.net,
            "allow_remote_code": ctx.settings.allow_remote_code,
            "allow_third_party_plugins": False,
        },
        "context": dict(facts),
    }

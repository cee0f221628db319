"""Sources that are not safetensors, converted once per deployment and kept in EVPACK_HOME."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from evpack.assets.gguf import convert_gguf
from evpack.assets.worker import run_worker
from evpack.errors import CheckpointError
from evpack.files import canonical_json, read_json, tree_digests
from evpack.plan.sources import CODE_SUFFIX, PLAIN_SUFFIXES
from evpack.publishing import AlreadyPublished, publishing

RECORD = ".converted.json"
"""In a converted directory: what it was made of and the digest of every file that was made."""

_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PYTHONPATH", "VIRTUAL_ENV")
"""Variables that the process which opens pickles gets: no credential, no setting."""


def converted(source: Path, target: Path, revision: str, weights: tuple[str, ...] | None = None) -> Path:
    """The checkpoint that a GGUF file or a directory with pickles converts to; made when it is not there.

    Args:
        target: the directory to make (`plan.sources.converted_dir`).
        revision: digest or commit of the source, recorded and held against an earlier conversion.
        weights: names of the pickles of a directory; None for a GGUF file.

    Returns:
        `target`.

    Raises:
        CheckpointError: not convertible, or an earlier conversion that was changed.
        DiskFull, OutOfHostMemory: no room; no memory.
    """
    if not target.exists():
        with suppress(AlreadyPublished), publishing(target) as part:  # somebody else may finish first: same bytes
            if weights is None:
                convert_gguf(source, part)
            else:
                _convert_pickles(source, part, weights)
            (part / RECORD).write_bytes(canonical_json({"source": revision, "files": tree_digests(part)}))
    files = tree_digests(target)
    files.pop(RECORD, None)
    if not (target / RECORD).is_file() or read_json(target / RECORD) != {"source": revision, "files": files}:
        raise CheckpointError(f"{target} is not what was converted from {source}", "remove that directory")
    return target


def _convert_pickles(source: Path, target: Path, weights: tuple[str, ...]) -> None:
    """Safetensors of the pickles, and copies of configuration and tokenizer."""
    for item in source.iterdir():
        taken = item.suffix in (*PLAIN_SUFFIXES, CODE_SUFFIX) and not item.name.endswith(".bin.index.json")
        if item.is_file() and taken:
            shutil.copyfile(item, target / item.name)
    run_worker(
        "evpack.checkpoint.pickle_worker",
        source,
        target,
        "use a checkpoint in safetensors format",
        extra=weights,
        environ={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    )

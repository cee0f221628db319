"""The model hub, as far as a campaign needs it: what a repository holds, and its snapshots. Always anonymous.

The only module that calls huggingface_hub. Nothing here decides anything about a campaign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evpack.errors import BadInput, CheckpointError, Transient

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A revision that can never mean something else later; a branch or tag can."""

_NESTED = ["*/*"]
"""Folders of a repository (other formats, examples) are never taken."""


@dataclass(frozen=True)
class Remote:
    """What the hub says about one revision of a repository."""

    revision: str
    """Commit, 40 hex digits."""
    gated: bool
    private: bool
    files: Mapping[str, int]
    """Bytes of every file outside folders, by name."""


def look_up(model_id: str, revision: str | None = None) -> Remote:
    """Ask the hub about a repository.

    Args:
        revision: a commit; the head of the default branch when None.

    Raises:
        BadInput: no such repository or revision, or not open to everybody.
        Transient: the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _hub_errors(model_id):
        info = HfApi(token=False).model_info(model_id, revision=revision, files_metadata=True)
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise BadInput(f"model {model_id}: the hub names no commit ({info.sha!r})", "check HF_ENDPOINT")
    files = {entry.rfilename: entry.size or 0 for entry in info.siblings or () if "/" not in entry.rfilename}
    return Remote(info.sha, bool(info.gated), bool(info.private), files)


def largest_tensor(model_id: str, revision: str) -> int:
    """Bytes of the largest tensor, from the headers of the safetensors files on the hub; no weights are fetched.

    Raises:
        BadInput: no such repository or revision.
        CheckpointError: a header cannot be read.
        Transient: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        with _hub_errors(model_id):
            found = HfApi(token=False).get_safetensors_metadata(model_id, revision=revision)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise CheckpointError(f"model {model_id}, revision {revision}: {error}", "use another revision") from error
    tensors = [tensor for file in found.files_metadata.values() for tensor in file.tensors.values()]
    return max((tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in tensors), default=0)


def snapshot(model_id: str, revision: str, cache: Path, patterns: Sequence[str], *, network: bool) -> Path:
    """The directory of a snapshot in a hub cache, holding the files that match the patterns.

    Args:
        revision: a commit.
        cache: directory of the cache (HF_HUB_CACHE).
        patterns: shell patterns of file names; files in folders never match.
        network: whether what is missing may be downloaded.

    Raises:
        BadInput: without network, when the cache lacks the snapshot or a part of it; else as `look_up`.
        Transient: the download was interrupted; what arrived is kept for the next try.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        with _hub_errors(model_id):
            found = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache,
                allow_patterns=list(patterns),
                ignore_patterns=_NESTED,
                local_files_only=not network,
                token=False,
            )
    except (LocalEntryNotFoundError, IncompleteSnapshotError) as error:
        if network:
            raise Transient(f"model {model_id}: the hub cannot be reached ({_line(error)})", _CONNECT) from error
        part = "" if isinstance(error, LocalEntryNotFoundError) else " in full"
        raise BadInput(f"model {model_id}: revision {revision} is not in the cache {cache}{part}", FETCH) from error
    return Path(str(found))


FETCH = "fetch it with `evpack revisions pin --fetch`, or set HF_HUB_CACHE to the cache that has it"
"""What to do where a cache lacks a snapshot or its weights, and the network may not be used."""
_CONNECT = "check the network and HF_ENDPOINT, or set PACK_NET=0 to work from the cache"


@contextmanager
def _hub_errors(model_id: str) -> Iterator[None]:
    """The library's errors as ours."""
    from huggingface_hub import errors

    local = (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError)
    try:
        yield
    except local:
        raise
    except errors.GatedRepoError as error:
        raise BadInput(f"model {model_id} is gated", "use an openly available model") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"model {model_id} is not on the hub, or private", "check the id; private models cannot be used"
        ) from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise BadInput(f"model {model_id}: {_line(error)}", "pin a revision that exists") from error
    except errors.OfflineModeIsEnabled as error:
        raise BadInput(
            f"model {model_id}: PACK_NET=1, but the environment says HF_HUB_OFFLINE", "unset one of the two"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise BadInput(f"model {model_id} is not open to everybody", "use an openly available model") from error
        raise Transient(f"model {model_id}: the hub answers {status}", _CONNECT) from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise Transient(f"model {model_id}: the hub cannot be reached ({_line(error)})", _CONNECT) from error


def _line(error: Exception) -> str:
    """The first line of an error's text that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

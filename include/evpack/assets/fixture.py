"""The fixture: a tiny trained model and a small text, shipped with the package so that self-tests need no network."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path

from evpack.assets.tree import check_tree
from evpack.errors import EvidenceError, MissingFile
from evpack.files import Json, read_json

DIGESTS_NAME = "digests.json"
_MEND = "install evpack again; its fixture is damaged"


def fixture_root() -> Path:
    """Directory of the fixture: digests.json, model/, text/."""
    return Path(str(package_files("evpack.assets"))) / "fixture"


def fixture_facts() -> dict[str, Json]:
    """digests.json: `files` {part: {name: sha256}}, `recipe`, `measured`, `versions`, `trained_on`.

    Raises:
        MissingFile: the package was installed without its data.
        EvidenceError: the file is not what the training script writes.
    """
    path = fixture_root() / DIGESTS_NAME
    if not path.is_file():
        raise MissingFile(f"the fixture's {path} is missing", _MEND)
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise EvidenceError(f"{path}: has no object `files`", _MEND)
    return facts


def fixture_model() -> Path:
    """Directory of the fixture's checkpoint (config, tokenizer, bfloat16 model.safetensors), digests checked.

    Raises:
        MissingFile: the package was installed without its data.
        IntegrityError: a file differs from its digest.
    """
    return _checked("model")


def fixture_text() -> Path:
    """Directory of the fixture's text: one ``*.txt`` per speech that the model never saw, digests checked.

    Raises:
        MissingFile: the package was installed without its data.
        IntegrityError: a file differs from its digest.
    """
    return _checked("text")


def _checked(part: str) -> Path:
    root = fixture_root() / part
    check_tree(root, fixture_facts()["files"][part], _MEND)
    return root

"""JSON documents beside a checkpoint, read into their models."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from evpack.errors import CheckpointError, EvidenceError
from evpack.files import parse_json

Document = TypeVar("Document", bound=BaseModel)


def read_as(model: type[Document], path: Path, mend: str) -> Document:
    """The document in a file.

    Raises:
        CheckpointError: when it is absent, malformed or of another schema; names the file and the first wrong field.
    """
    try:
        return model.model_validate(parse_json(path.read_bytes(), str(path)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", mend) from error
    except EvidenceError as error:
        raise CheckpointError(error.what, mend) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", mend) from error

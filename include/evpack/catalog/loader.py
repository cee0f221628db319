"""Reading the catalog's documents, shipped or the operator's, with errors that name document and entry."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from evpack.errors import BadInput, EvidenceError, MissingFile
from evpack.files import Json, parse_json

_Model = TypeVar("_Model", bound=BaseModel)


def shipped(name: str) -> bytes:
    """A data file of this package.

    Raises:
        MissingFile: when the package has no such file.
    """
    file = files("evpack.catalog").joinpath("data", name)
    if not file.is_file():
        raise MissingFile(f"the catalog has no {name}", "install evpack again, or name a file that exists")
    return file.read_bytes()


def read_document(path: Path, what: str, mend: str) -> bytes:
    """A file that the operator named.

    Raises:
        MissingFile: when it is not there.
        BadInput: when it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFile(f"{what} {path} does not exist", mend) from error
    except OSError as error:
        raise BadInput(f"{what} {path} cannot be read ({error.strerror})", mend) from error


def parse_document(data: bytes, name: str) -> Json:
    """`files.parse_json` whose faults are the operator's.

    Raises:
        BadInput: naming document and fault.
    """
    try:
        return parse_json(data, name)
    except EvidenceError as error:
        raise BadInput(error.what, "write it as strict JSON") from error


def parse_as(model: type[_Model], data: bytes, name: str) -> _Model:
    """A document of a known shape.

    Raises:
        BadInput: naming the document, the place in it and what is wrong there.
    """
    try:
        return model.model_validate(parse_document(data, name))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "top level"
        message = fault["msg"].removeprefix("Value error, ")
        raise BadInput(f"{name}: {place}: {message}", "compare it with the shipped file of the same schema") from error

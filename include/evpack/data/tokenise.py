"""Token ids of texts with a checkpoint's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evpack.errors import CheckpointError
from evpack.files import sha256_bytes

SEPARATOR = "\n\n"
"""Follows every document, so that two of them never run into one word."""


def load_tokenizer(checkpoint: Path, *, code: bool = False) -> Any:
    """The tokenizer in a local checkpoint directory.

    Args:
        code: whether code that the checkpoint brings may run (INVARLOCK_ALLOW_REMOTE_CODE).

    Raises:
        CheckpointError: naming the directory.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"no usable tokenizer in {checkpoint}: {str(error).splitlines()[0]}",
            "give a checkpoint directory with its tokenizer files",
        ) from error


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex SHA-256 of the vocabulary: compact JSON of the sorted (token, id) pairs."""
    pairs = sorted(tokenizer.get_vocab().items())
    return sha256_bytes(json.dumps(pairs, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"))


def token_ids(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Ids of each text with its separator, without special tokens."""
    for text in texts:
        ids: list[int] = tokenizer(text + SEPARATOR, add_special_tokens=False, verbose=False)["input_ids"]
        yield ids


def texts_of(tokenizer: Any, tokens: Iterable[Any]) -> list[str]:
    """The text of each row of token ids, as it stands (no tidying of spaces)."""
    rows = [[int(token) for token in row] for row in tokens]
    texts: list[str] = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    return texts

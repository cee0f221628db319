"""Text of hub datasets: fetched once into the deployment's texts/, as JSON lines; from then on it is a local text.

Keeping the rows pins them: every model and every later campaign of the deployment sees the same text, whatever
happens to the dataset. The only module that uses the `datasets` library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from evpack.errors import BadInput, DataError, MissingFile, Transient
from evpack.files import digest_json
from evpack.home import Home, safe_name
from evpack.publishing import AlreadyPublished, write_atomic
from evpack.settings import Settings

FIELD = "text"
"""Of the JSON lines that are kept."""
MIN_CHARACTERS = 20
"""Shortest line of wikitext2 that is text; what is shorter, or without a letter, is empty or a heading's rest."""

_WIKITEXT = ("Salesforce/wikitext", "wikitext")
"""The dataset's id, and the name under which older caches hold it."""


@dataclass(frozen=True)
class HubText:
    """Rows of one dataset, and where they are kept."""

    provider: str
    names: tuple[str, ...]
    """Id on the hub (or a directory with the dataset's files), then older names of it."""
    config: str
    split: str
    field: str
    max_samples: int | None
    """Rows that are read at most, None for all."""
    prose_only: bool
    """Whether lines that are no text (`MIN_CHARACTERS`) are left out."""
    cache: Path
    """Directory in which the `datasets` library keeps prepared datasets."""
    file: Path
    """JSON lines with the rows' text, once they were fetched."""

    @classmethod
    def named(cls, settings: Settings, home: Home) -> HubText:
        """The dataset that provider ``wikitext2`` or ``hf_text`` means."""
        cache = settings.hf_cache_dir or settings.hf_datasets_cache
        default = (Path(settings.hf_home) if settings.hf_home else home.hf) / "datasets"
        wiki = settings.dataset == "wikitext2"
        names = _WIKITEXT if wiki else (settings.hf_dataset_name,)
        config = "wikitext-2-raw-v1" if wiki else settings.hf_config_name
        split = "validation" if wiki else settings.hf_split
        field = "text" if wiki else settings.hf_text_field
        rows = None if wiki else settings.hf_max_samples
        parts = [names[0], config, split, field, "" if rows is None else str(rows)]
        readable = safe_name("--".join(filter(None, parts)))  # two datasets may look alike: the digest tells them apart
        file = home.texts / f"{readable}-{digest_json(parts)[:8]}.jsonl"
        where = Path(cache) if cache else default
        return cls(settings.dataset, names, config, split, field, rows, wiki, where, file)

    def check(self, *, network: bool) -> None:
        """Refuse what cannot be fetched later, without looking into it.

        Raises:
            MissingFile: without network, when neither the kept rows nor a prepared dataset are there.
        """
        if not (network or self.file.is_file() or self._directory or self._prepared()):
            raise MissingFile(
                f"dataset {self} is neither in {self.file} nor in the cache {self.cache}, and PACK_NET=0",
                "fetch it once with PACK_NET=1, name a cache that has it (INVARLOCK_HF_CACHE_DIR, HF_DATASETS_CACHE), "
                "or use provider local_jsonl",
            )

    def fetch(self, *, network: bool) -> Path:
        """The file with the rows, made when it is not there yet.

        A directory or a prepared dataset of the cache is preferred; else, with network, the rows that are needed are
        streamed from the hub, anonymously and without code of the dataset.

        Raises:
            MissingFile: as `check`.
            BadInput: no such dataset, configuration, split or field, or no text in it.
            DataError: the prepared dataset is damaged.
            Transient: the hub cannot be reached.
        """
        if self.file.is_file():
            return self.file
        self.check(network=network)
        prepared = self._prepared()
        rows = self._cached(prepared) if prepared and not self._directory else self._streamed()
        texts = [text for text in self._texts(rows) if not self.prose_only or _is_prose(text)]
        if not texts:
            raise BadInput(f"dataset {self} holds no text", "choose another dataset or split")
        lines = "".join(json.dumps({FIELD: text}, ensure_ascii=True) + "\n" for text in texts)
        with suppress(AlreadyPublished):  # another model's step was faster; all must use the same rows
            write_atomic(self.file, lines.encode("ascii"), replace=False)
        return self.file

    def __str__(self) -> str:
        return f"{self.names[0]} ({self.config or 'default'}, {self.split})"

    @property
    def _directory(self) -> Path | None:
        """The directory that the operator named in place of a hub id."""
        path = Path(self.names[0])
        return path if path.is_absolute() and path.is_dir() else None

    def _prepared(self) -> list[Path]:
        """Arrow files of the split in the library's cache, in order; the newest preparation when there are several."""
        for name in self.names:
            base = self.cache / name.replace("/", "___") / (self.config or "default")
            # <version>/<fingerprint>/<dataset>-<split>[-00000-of-00002].arrow; parts of one preparation lie together
            stem = name.rpartition("/")[2]
            files = [*base.glob(f"*/*/{stem}-{self.split}.arrow"), *base.glob(f"*/*/{stem}-{self.split}-*-of-*.arrow")]
            if files:
                newest = max({file.parent for file in files}, key=lambda place: (place.stat().st_mtime_ns, place))
                return sorted(file for file in files if file.parent == newest)
        return []

    def _cached(self, files: Iterable[Path]) -> Iterator[Any]:
        from datasets import Dataset

        for file in files:
            try:
                part = Dataset.from_file(str(file))
            except (OSError, ValueError) as error:  # pyarrow's errors are both
                raise DataError(f"{file} cannot be read: {error}", "remove it and fetch the dataset again") from error
            self._need_field(part.column_names)
            yield from part.select_columns([self.field])

    def _streamed(self) -> Iterator[Any]:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError, DatasetsError
        from huggingface_hub.errors import HTTPError

        name = str(self._directory or self.names[0])
        mend = "check INVARLOCK_HF_DATASET_NAME, INVARLOCK_HF_CONFIG_NAME and PACK_HF_SPLIT"
        config = None if self._directory and self.config in ("", "default") else self.config or None
        try:
            stream = load_dataset(
                name, config, split=self.split, streaming=True, token=False, cache_dir=str(self.cache)
            )
            for number, row in enumerate(islice(stream, self.max_samples)):
                if number == 0:
                    self._need_field(row)
                yield row
        except DatasetNotFoundError as error:
            raise BadInput(f"dataset {self} is not openly on the hub: {_line(error)}", mend) from error
        except (ValueError, DatasetsError) as error:
            raise BadInput(f"dataset {self}: {_line(error)}", mend) from error
        except (HTTPError, OSError) as error:  # the library's ConnectionError is an OSError
            raise Transient(
                f"dataset {self}: the hub cannot be reached ({_line(error)})", "check the network and HF_ENDPOINT"
            ) from error

    def _texts(self, rows: Iterable[Any]) -> Iterator[str]:
        for number, row in enumerate(islice(rows, self.max_samples)):
            text = row[self.field]
            if not isinstance(text, str):
                kind = type(text).__name__
                raise BadInput(
                    f"dataset {self}, row {number}: field {self.field!r} is a {kind}, not text",
                    "set INVARLOCK_HF_TEXT_FIELD",
                )
            yield encodable(text, f"dataset {self}, row {number}")

    def _need_field(self, columns: Iterable[str]) -> None:
        known = sorted(columns)
        if self.field not in known:
            raise BadInput(
                f"dataset {self} has no field {self.field!r}; its fields are {known}", "set INVARLOCK_HF_TEXT_FIELD"
            )


def encodable(text: str, where: str) -> str:
    """The text, when a tokenizer can take it.

    Raises:
        BadInput: naming the place, for half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where}: character {error.start} is {text[error.start]!r}, half of a surrogate pair",
            "mend the encoding of the text",
        ) from error
    return text


def _is_prose(text: str) -> bool:
    text = text.strip()
    return len(text) >= MIN_CHARACTERS and any(letter.isalpha() for letter in text)


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""What can be known of the evaluation text before any compute, without torch or transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evpack.data.sources import hub_text, readable_bytes, source_from
from evpack.data.windows import WindowDemand, too_short
from evpack.errors import BadInput
from evpack.home import Home
from evpack.settings import Settings


def check_source(settings: Settings, checkpoints: Iterable[Path] = (), home: Home | None = None) -> None:
    """Refuse a text that cannot give the windows the settings ask for.

    With local checkpoint directories the text is counted with each one's ``tokenizer.json`` (only as much of it as is
    needed); without, a text is refused when it has fewer bytes than tokens are needed, which no byte-level
    tokenizer can mend. Rows of a hub dataset are counted if they were fetched before; they are not fetched for this.

    Raises:
        BadInput: naming the file or the setting, or how many windows are there, needed and missing.
    """
    demand = WindowDemand.from_settings(settings)
    hub = hub_text(settings, home)
    if hub is not None and not hub.file.is_file():
        hub.check(network=settings.net)
        return
    source = source_from(settings, home)
    size = readable_bytes(source)
    if size < demand.tokens:
        raise too_short(demand.windows_in(size), demand, "at most, one token per byte", BadInput)
    texts: list[str] | None = None
    for directory in checkpoints:
        file = directory / "tokenizer.json"
        if file.is_file():
            texts = list(source.texts()) if texts is None else texts
            have = _count_tokens(file, texts, demand.tokens)
            if have < demand.tokens:
                raise too_short(demand.windows_in(have), demand, f"tokenizer of {directory.name}", BadInput)


def _count_tokens(tokenizer_file: Path, texts: Iterable[str], enough: int) -> int:
    """Tokens of the texts, counted until there are enough."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise BadInput(f"{tokenizer_file} is not a tokenizer: {error}", "mend the checkpoint directory") from error
    tokenizer.no_truncation()  # what the file says of inputs for training or search is no property of the text
    tokenizer.no_padding()
    count = 0
    for text in texts:
        count += len(tokenizer.encode(text + "\n\n", add_special_tokens=False).ids)
        if count >= enough:
            break
    return count

"""Work beside the main thread: the next tensor is read and the last one written while this one is edited.

Reading, hashing and writing release Python's global lock, so one thread each is enough. Tensors above
`OVERLAP_BYTES` are handled in line: what waits never adds more than twice that to the memory of the tensor at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from evpack.checkpoint.reader import CheckpointLike

OVERLAP_BYTES = 1 << 28
"""Largest tensor that may wait for a thread."""


class Behind:
    """Runs one thing at a time in another thread, in the order given; its error is raised at the next call."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def run(self, work: Callable[[], None], nbytes: int) -> None:
        """Start the work once what was started before is done.

        Args:
            nbytes: size of what the work keeps in memory; the work is done at once when it is large.

        Raises:
            BaseException: what the work before raised.
        """
        self.wait()
        if nbytes > OVERLAP_BYTES:
            work()
            return
        self._thread = Thread(target=self._guarded, args=(work,))
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            BaseException: what the work raised.
        """
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self) -> None:
        """Wait and forget an error: for clean-up after another one."""
        self._join()
        self._error = None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


def read_ahead(checkpoint: CheckpointLike, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in the order of the names, each read once, the next one while the caller works on this one.

    Raises:
        CheckpointError: naming the tensor or shard, when its turn comes.
    """
    ahead = Behind()
    found: dict[str, torch.Tensor] = {}

    def fetch(name: str) -> None:
        found[name] = checkpoint.read(name)

    try:
        for position, name in enumerate(names):
            ahead.wait()
            tensor = found.pop(name) if name in found else checkpoint.read(name)
            following = names[position + 1 : position + 2]
            if following and checkpoint.info(following[0]).nbytes <= OVERLAP_BYTES:
                ahead.run(lambda name=following[0]: fetch(name), 0)  # type: ignore[misc]
            yield name, tensor
            del tensor
    finally:
        ahead.settle()

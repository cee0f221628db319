"""Work beside the main thread: the next tensors are read and the last ones written while this one is edited.

Reading, hashing and writing release Python's global lock, so one thread each is enough: one reads and hashes what it
read, one writes, one hashes what is being written. Tensors above `OVERLAP_BYTES` are handled in line: what waits never
adds more than twice that to the memory of the tensor at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    from evpack.checkpoint.reader import CheckpointLike

T = TypeVar("T")

OVERLAP_BYTES = 1 << 28
"""How much may wait for a thread. Several tensors, so that neither thread stands still where large and small ones
follow each other."""


class Behind:
    """Runs one thing at a time in another thread, in the order given. After an error nothing more is run; it is raised
    at a later call, at the latest by `wait`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._beside = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._failed = False

    def run(self, work: Callable[[], None], nbytes: int) -> None:
        """Start the work once what was started before is done; return when what is under way leaves room for it.

        Args:
            nbytes: size of what the work keeps in memory; the work is done at once when it is large.

        Raises:
            BaseException: what the work before raised.
        """
        self._let_go(OVERLAP_BYTES - nbytes)
        if nbytes > OVERLAP_BYTES:
            work()
        else:
            self._waiting.append((self._thread.submit(self._unless_failed, work), nbytes))

    def beside(self, work: Callable[[], T]) -> Future[T]:
        """Start a part of what is being run in a further thread, for the work to ask for before it ends."""
        return self._beside.submit(work)

    def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            BaseException: what the work raised.
        """
        self._let_go(-1)

    def settle(self) -> None:
        """Wait and forget an error: for clean-up after another one."""
        self._failed = True
        while self._waiting:
            self._waiting.popleft()[0].exception()
        self._failed = False

    def _let_go(self, limit: int) -> None:
        """Wait until at most `limit` bytes are under way."""
        held = sum(nbytes for _, nbytes in self._waiting)
        while self._waiting and (held > limit or self._waiting[0][0].done()):
            future, nbytes = self._waiting.popleft()
            held -= nbytes
            if error := future.exception():
                self.settle()
                raise error

    def _unless_failed(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise


def read_ahead(checkpoint: CheckpointLike, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in the order of the names, each read once, the next ones while the caller works on this one.

    Raises:
        CheckpointError: naming the tensor or shard, when its turn comes.
    """
    to_read = deque((name, checkpoint.info(name).nbytes) for name in names)
    ahead: deque[tuple[str, int, Future[torch.Tensor]]] = deque()
    thread = ThreadPoolExecutor(max_workers=1)

    def start(limit: int) -> None:
        """Start to read what fits besides what was read and not yet taken."""
        while to_read and sum(nbytes for _, nbytes, _ in ahead) + to_read[0][1] <= limit:
            name, nbytes = to_read.popleft()
            ahead.append((name, nbytes, thread.submit(checkpoint.read, name)))

    try:
        while to_read or ahead:
            start(OVERLAP_BYTES if ahead else max(OVERLAP_BYTES, to_read[0][1]))
            name, _, reading = ahead.popleft()
            tensor = reading.result()
            del reading
            start(OVERLAP_BYTES)
            yield name, tensor
            del tensor
    finally:
        thread.shutdown(cancel_futures=True)

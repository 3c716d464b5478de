"""A disk in memory, for tests of the NBD export: answers at once, or when the test says so."""

from __future__ import annotations

from collections.abc import Callable

from xenbusd_vbd.nbd.disk import Done, ReadDone


class MemoryDisk:
    """A `Disk` on a bytearray.

    Args:
        size_bytes: its size.
        deferred: keep each request back in `waiting` until the test calls it; writes take their data only then.
    """

    block_size = 512
    preferred_size = 4096
    kind = "disk"

    def __init__(
        self,
        size_bytes: int,
        *,
        read_only: bool = False,
        can_flush: bool = True,
        can_trim: bool = True,
        deferred: bool = False,
    ) -> None:
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.can_flush = can_flush
        self.can_trim = can_trim
        self.data = bytearray(size_bytes)
        self.deferred = deferred
        self.waiting: list[Callable[[], None]] = []
        self.seen: list[tuple[object, ...]] = []
        """What reached the disk: ("write", offset, length, fua) and the like."""
        self.fail_with = 0
        """An errno for everything from now on, or 0."""

    def _answer(self, work: Callable[[], None]) -> None:
        if self.deferred:
            self.waiting.append(work)
        else:
            work()

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        """Answer with two pieces where there are two sectors, and poison them afterwards: they were only lent."""
        self.seen.append(("read", offset, length))

        def work() -> None:
            if self.fail_with:
                done(self.fail_with, ())
                return
            lent = bytearray(self.data[offset : offset + length])
            view = memoryview(lent)
            half = length // 1024 * 512
            done(0, [view[:half], view[half:]] if half else [view])
            lent[:64] = b"\xdb" * 64

        self._answer(work)

    def write(self, offset: int, data: memoryview, fua: bool, done: Done) -> None:
        """Take the data only when the request is answered."""
        self.seen.append(("write", offset, len(data), fua))

        def work() -> None:
            if not self.fail_with:
                self.data[offset : offset + len(data)] = data
            done(self.fail_with)

        self._answer(work)

    def flush(self, done: Done) -> None:
        """Note that it was asked for."""
        self.seen.append(("flush",))
        self._answer(lambda: done(self.fail_with))

    def trim(self, offset: int, length: int, done: Done) -> None:
        """Put zeroes there."""
        self.seen.append(("trim", offset, length))

        def work() -> None:
            if not self.fail_with:
                self.data[offset : offset + length] = bytes(length)
            done(self.fail_with)

        self._answer(work)

    def answer(self, count: int | None = None, *, last_first: bool = False) -> None:
        """Answer requests that wait: the first `count`, or all; in order, or the other way round."""
        count = len(self.waiting) if count is None else count
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        for work in reversed(batch) if last_first else batch:
            work()

"""Copies of the writes that a server has answered, but has not yet been asked to put on stable storage.

A server may keep in its own memory what it has answered: qemu-nbd does so with the tables of a qcow2 image, and a write
whose table entry dies with the process is lost. The guest has not crashed and will not write again, so the daemon does.

Decision: D22.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class UnflushedWrites:
    """Writes in the order of their answers. Pure: no I/O here."""

    def __init__(self) -> None:
        self.bytes = 0
        """Memory that the copies take."""
        self._writes: deque[bytearray] = deque()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._writes)

    def __iter__(self) -> Iterator[bytearray]:
        return iter(tuple(self._writes))

    def keep(self, message: bytearray) -> None:
        """Keep a write, as `nbd.client.write_message` made it."""
        self._writes.append(message)
        self.bytes += len(message)

    def mark(self) -> int:
        """The number of writes kept so far, ever: a flush that is sent now covers these."""
        return self._dropped + len(self._writes)

    def drop(self, mark: int) -> None:
        """Forget the writes that a flush sent at `mark` has put on stable storage."""
        while self._dropped < mark and self._writes:
            self.bytes -= len(self._writes.popleft())
            self._dropped += 1

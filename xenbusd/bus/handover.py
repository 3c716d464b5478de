"""How one backend process hands a connected ring to the next: the journal's file in the run directory.

While a device is connected its ring has a journal there. The next process goes on with the ring if the one before
stopped in order, or if it was killed but its driver answers in the order of the requests. Otherwise answers may stand
in slots whose requests were not done yet, so that what lies in the ring cannot be trusted to be requests; then the
device is closed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from mmap import mmap

from xenbusd.errors import ConnectionEnded
from xenbusd.ring.journal import Flags, Journal, size_bytes
from xenbusd.ring.layout import slots


def journal_path(path: str, number: int) -> str:
    """Where the journal of a device's ring `number` is, given the first one's path."""
    return f"{path}{number}" if number else path


def forget(path: str) -> None:
    """Remove the journals of all rings of a device, however many there were: its connection is over. Idempotent."""
    folder, name = os.path.split(path)
    with suppress(FileNotFoundError):
        for found in os.listdir(folder):
            if found == name or (found.startswith(name) and found[len(name) :].isdigit()):
                os.unlink(os.path.join(folder, found))


def identity(grefs: Sequence[int], otherend_port: int) -> int:
    """A number for a ring: the same for the same grants and port."""
    return zlib.crc32(repr((list(grefs), otherend_port)).encode())


class Handover:
    """The journal of one ring of a device, and its file.

    Args:
        path: the file, on a file system that lives as long as the host: /run.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._memory: mmap | None = None
        self.journal: Journal | None = None
        """Set while the ring is connected."""

    def begin(self, ring_id: int, pages: int, slot_bytes: int, *, in_order: bool) -> Journal:
        """Make a fresh journal.

        Raises:
            OSError: the run directory is full or gone.
        """
        size = size_bytes(slots(pages, slot_bytes), slot_bytes)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a page that cannot be had later would kill us by SIGBUS
            self._memory = mmap(fd, size)
        finally:
            os.close(fd)
        flags = Flags.IN_ORDER if in_order else 0
        self.journal = Journal(memoryview(self._memory), ring_id, fresh=True, flags=flags)
        return self.journal

    def adopt(self, ring_id: int, pages: int, slot_bytes: int) -> Journal:
        """Take the journal of the process before us.

        Raises:
            ConnectionEnded: there is none, it is another ring's, or the ring was not left in a state to go on with.
        """
        size = size_bytes(slots(pages, slot_bytes), slot_bytes)
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            raise ConnectionEnded("the process before us has left no journal of the ring") from None
        try:
            if os.fstat(fd).st_size != size:
                raise ConnectionEnded("the journal is not of this ring's size")
            self._memory = mmap(fd, size)
        finally:
            os.close(fd)
        try:
            journal = Journal(memoryview(self._memory), ring_id, fresh=False)
        except ValueError as error:
            raise ConnectionEnded(str(error)) from None
        self.journal = journal
        if not journal.flags:
            raise ConnectionEnded("the process before us was killed, and may have answered out of order")
        journal.flags &= ~Flags.LEFT
        return journal

    def mark_clean(self) -> None:
        """Everything taken is answered: whoever comes after us may go on, whatever the driver is like."""
        if self.journal is not None:
            self.journal.flags |= Flags.LEFT

    def close(self) -> None:
        """Let go of the journal; its file stays. Idempotent."""
        if self.journal is not None:
            self.journal.release()
            self.journal = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

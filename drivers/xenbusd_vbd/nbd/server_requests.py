"""The requests of an NBD client that are under way: given to the disk, counted, and answered."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial

from xenbusd_vbd.nbd.disk import Disk
from xenbusd_vbd.nbd.server_replies import Replies
from xenbusd_vbd.nbd.wire import CMD_FLUSH, CMD_TRIM

REQUESTS_MAX = 128
"""Requests under way on one connection; the next one stays in the socket."""
BYTES_MAX = 64 * 1024 * 1024
"""Bytes that the requests under way on one connection read or write together."""


Counters = MutableMapping[str, int]
"""Totals of an export since it began, over all its connections, by the names of COUNTED."""

COUNTED = {
    "nbd_connections": ("connections", "of NBD clients"),
    "nbd_requests": ("requests", "of NBD clients"),
    "nbd_bytes_read": ("bytes", "read by NBD clients"),
    "nbd_bytes_written": ("bytes", "written by NBD clients"),
    "nbd_errors": ("requests", "of NBD clients that failed, at the disk or before they reached it"),
}
"""What an export counts: name -> unit, and what the things counted have in common."""


class RequestsUnderWay:
    """Requests between their arrival and their reply.

    Args:
        disk: does them.
        replies: get the answers.
        counters: of the export.
        abort: ends the connection, when the disk has given an impossible answer.
    """

    def __init__(self, disk: Disk, replies: Replies, counters: Counters, abort: Callable[[], None]) -> None:
        self.count = 0
        self._bytes = 0
        self._disk = disk
        self._replies = replies
        self._counters = counters
        self._abort = abort

    def has_room(self, length: int) -> bool:
        """Whether one more request may begin, which reads or writes so many bytes."""
        return self.count < REQUESTS_MAX and self._bytes + length <= BYTES_MAX

    # To the disk.

    def read(self, handle: int, offset: int, length: int) -> None:
        """Begin a READ."""
        self.count += 1
        self._bytes += length
        done = partial(self._read, handle, offset, length)
        if length:
            self._disk.read(offset, length, done)
        else:
            done(0, ())

    def write(self, handle: int, offset: int, data: memoryview, fua: bool) -> None:
        """Begin a WRITE; nobody else changes its data."""
        length = len(data)
        self.count += 1
        self._bytes += length
        done = partial(self._written, handle, length)
        if length:
            self._disk.write(offset, data, fua, done)
        else:
            done(0)

    def begin(self, command: int, handle: int, offset: int, length: int, fua: bool) -> None:
        """Begin a request without data: FLUSH or TRIM."""
        self.count += 1
        done = partial(self._done, handle)
        if command == CMD_FLUSH:
            self._disk.flush(done)
        elif command == CMD_TRIM and length:
            self._disk.trim(offset, length, partial(self._trimmed, done) if fua else done)
        else:
            done(0)

    def refused(self, handle: int, code: int, why: str) -> bytes:
        """Count a request that does not reach the disk, and return its answer."""
        self._counters["nbd_errors"] += 1
        return self._replies.failure(handle, code, why)

    # From the disk.

    def _read(self, handle: int, offset: int, length: int, code: int, pieces: Sequence[memoryview]) -> None:
        self._bytes -= length
        if code:
            self._done(handle, code)
            return
        self.count -= 1
        try:
            self._replies.data(handle, offset, length, pieces)
        except ValueError:
            self._abort()
            raise
        self._counters["nbd_bytes_read"] += length

    def _written(self, handle: int, length: int, code: int) -> None:
        self._bytes -= length
        if not code:
            self._counters["nbd_bytes_written"] += length
        self._done(handle, code)

    def _trimmed(self, done: Callable[[int], None], code: int) -> None:
        # FUA on a trim: `trim` has no such flag, so a flush follows.
        if code:
            done(code)
        else:
            self._disk.flush(done)

    def _done(self, handle: int, code: int) -> None:
        self.count -= 1
        if code:
            self._replies.add(self.refused(handle, code, os.strerror(code)))
        else:
            self._replies.done(handle)

"""Replies to an NBD client: simple or structured, collected, and written together.

The replies of one turn of the event loop are joined into few writes, because a system call costs more than copying a
small reply; large replies are written alone. While the client does not take its replies, they are kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from xenbusd_vbd.nbd.wire import data_chunk_head, error_chunk, none_chunk, simple_reply, wire_error

LARGE = 32 * 1024
"""Bytes from which on a reply is written by itself: joining it to others would copy it once more."""


class Replies:
    """The replies of one connection.

    Args:
        added: called after each reply that was added: `write` is due.
    """

    def __init__(self, added: Callable[[], None]) -> None:
        self.structured = False
        """Whether the client has asked for structured replies."""
        self.bytes = 0
        """Bytes that are not yet written."""
        self.writable = True
        """Whether the client takes its replies."""
        self._added = added
        self._out: deque[bytes] = deque()
        self._closed = False

    def add(self, reply: bytes) -> None:
        """Put a whole reply behind the others."""
        if self._closed:
            return
        self._out.append(reply)
        self.bytes += len(reply)
        self._added()

    def data(self, handle: int, offset: int, length: int, pieces: Sequence[memoryview]) -> None:
        """Answer a READ, copying its data: the pieces are the disk's again when this returns.

        Raises:
            ValueError: the pieces are not `length` bytes together.
        """
        if not self.structured:
            head = simple_reply(handle)
        elif length:
            head = data_chunk_head(handle, offset, length)
        else:
            head = none_chunk(handle)
        reply = b"".join((head, *pieces))
        if len(reply) != len(head) + length:
            raise ValueError(f"the disk answered a read of {length} bytes with {len(reply) - len(head)}")
        self.add(reply)

    def done(self, handle: int) -> None:
        """Answer a request without data."""
        self.add(simple_reply(handle))

    def failure(self, handle: int, code: int, why: str) -> bytes:
        """The answer to a request that failed: an errno, and a sentence where the client can read one."""
        error = wire_error(code)
        return error_chunk(handle, error, why) if self.structured else simple_reply(handle, error)

    def write(self, transport: asyncio.Transport) -> None:
        """Write the replies, as long as the client takes them."""
        out = self._out
        while out and self.writable:
            reply = out.popleft()
            if out and len(reply) < LARGE:
                batch = [reply]
                while out and len(out[0]) < LARGE:
                    batch.append(out.popleft())
                reply = b"".join(batch)
            self.bytes -= len(reply)
            transport.write(reply)

    def is_empty(self) -> bool:
        """Whether everything is written."""
        return not self._out

    def close(self) -> None:
        """Drop the replies, and those to come: the client has gone."""
        self._closed = True
        self._out.clear()

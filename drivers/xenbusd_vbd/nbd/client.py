"""One connection to an NBD server, after the handshake: requests out and replies in, by plain callbacks.

A request has neither task nor future. Requests are collected, and one call sends a batch of them. Replies are handed
over in batches, too, with the data of reads received straight into its destination.

Source: doc/proto.md of the NetworkBlockDevice/nbd repository, "Request message", "Simple reply message".
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

from xenbusd_vbd.nbd.wire import (
    CMD_DISC,
    CMD_READ,
    CMD_WRITE,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    WireError,
)

Token = TypeVar("Token")

BUFFER_SIZE = 256 * 1024
"""Bytes taken from the socket at once, besides the awaited data of a large read."""
VECTOR_MAX = 1024
"""Most buffers in one call (UIO_MAXIOV)."""
ROUNDS = 8
"""Most calls to the socket before control returns to the event loop."""

HEAD = REQUEST.size
"""Bytes before the data in what `write_message` makes."""


class NbdClient(Generic[Token]):
    """A connection in its transmission phase. To be used on the event loop's thread.

    Args:
        sock: connected, not blocking, past the handshake. This object closes it.
        answered: called with the requests that were answered: the token of each, and 0 or an errno.
        lost: called once with a sentence, from the event loop, when the connection has ended without `close`.
            `unanswered` then has the requests that were lost with it.
    """

    def __init__(
        self,
        sock: socket.socket,
        answered: Callable[[list[tuple[Token, int]]], None],
        lost: Callable[[str], None],
    ) -> None:
        self.answered = answered
        self.lost = lost
        self.ended = False
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, tuple[Token, Sequence[memoryview] | None]] = {}
        """Handle -> token, and the memory for the data of a read."""
        self._handle = 0
        self._out: deque[bytes | bytearray | memoryview] = deque()
        self._writing = False
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._end = 0
        """Bytes received of an incomplete head of a reply, at the start of the buffer."""
        self._reading: Token | None = None
        """The read whose data is received in part."""
        self._rest: list[memoryview] = []
        """The memory for the rest of it."""
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def unanswered(self) -> list[Token]:
        """The tokens of all requests without an answer, in the order of their sending."""
        reading = [] if self._reading is None else [self._reading]
        return reading + [token for token, _ in self._pending.values()]

    # Out.

    def read(self, token: Token, offset: int, length: int, into: Sequence[memoryview]) -> None:
        """Ask for `length` bytes, into `into`, which nobody else uses until the answer. `send` sends it."""
        handle = self._handle = self._handle + 1
        self._pending[handle] = token, into
        self._out.append(REQUEST.pack(REQUEST_MAGIC, 0, CMD_READ, handle, offset, length))

    def write(self, token: Token, message: bytearray) -> None:
        """Ask for a write made by `write_message`; nobody else changes it until the answer. `send` sends it."""
        handle = self._handle = self._handle + 1
        self._pending[handle] = token, None
        message[8:16] = handle.to_bytes(8, "big")
        self._out.append(message)

    def command(self, token: Token, command: int, offset: int = 0, length: int = 0) -> None:
        """Ask for a FLUSH or TRIM, which have no data. `send` sends it."""
        handle = self._handle = self._handle + 1
        self._pending[handle] = token, None
        self._out.append(REQUEST.pack(REQUEST_MAGIC, 0, command, handle, offset, length))

    def send(self) -> None:
        """Send the requests made since the last call; what the socket does not take now is sent when it does."""
        if not self._writing and not self.ended:
            self._writable()

    def _writable(self) -> None:
        out = self._out
        try:
            while out:
                batch = list(islice(out, VECTOR_MAX))
                sent = self._sock.sendmsg(batch)
                for piece in batch:
                    if len(piece) > sent:
                        if sent:
                            out[0] = memoryview(piece)[sent:]
                        break
                    sent -= len(piece)
                    out.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(f"sending failed: {error.strerror or error}")
            return
        if bool(out) != self._writing:
            self._writing = bool(out)
            if self._writing:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._sock.fileno())

    # In.

    def _readable(self) -> None:
        answers: list[tuple[Token, int]] = []
        end = ""
        try:
            for _ in range(ROUNDS):
                free = self._view[self._end :]
                rest = self._rest[: VECTOR_MAX - 1]
                wanted = sum(map(len, rest)) + len(free)
                received = self._sock.recvmsg_into([*rest, free])[0] if rest else self._sock.recv_into(free)
                if not received:
                    end = "the server has closed the connection"
                    break
                self._take(received, answers)
                if received < wanted and not self._rest:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except WireError as error:
            end = f"the server breaks the protocol: {error}"
        except OSError as error:
            end = f"receiving failed: {error.strerror or error}"
        if answers:
            self.answered(answers)
        if end:
            self._lose(end)

    def _take(self, received: int, answers: list[tuple[Token, int]]) -> None:
        """Parse received bytes: first the rest of a read's data, then whole replies."""
        if self._rest:
            received = self._fill(received)
            if self._rest:
                return
            assert self._reading is not None
            answers.append((self._reading, 0))
            self._reading = None
        view, pending, begin, end = self._view, self._pending, 0, self._end + received
        unpack, size = SIMPLE_REPLY.unpack_from, SIMPLE_REPLY.size
        while end - begin >= size:
            magic, error, handle = unpack(view, begin)
            if magic != SIMPLE_REPLY_MAGIC:
                raise WireError(f"a reply begins with {magic:#x}, not with {SIMPLE_REPLY_MAGIC:#x}")
            found = pending.pop(handle, None)
            if found is None:
                raise WireError(f"it answers handle {handle}, which nothing waits for")
            begin += size
            token, into = found
            if into is None or error:
                answers.append((token, error))
                continue
            for position, piece in enumerate(into):
                length = len(piece)
                if length > end - begin:
                    here = end - begin
                    piece[:here] = view[begin:end]
                    self._rest = [piece[here:], *into[position + 1 :]]
                    self._reading = token
                    self._end = 0
                    return
                piece[:] = view[begin : begin + length]
                begin += length
            answers.append((token, 0))
        self._end = end - begin
        if begin and self._end:
            view[: self._end] = view[begin:end]

    def _fill(self, received: int) -> int:
        """Account for data that filled `_rest`; return the number of bytes behind it, in the buffer."""
        for position, piece in enumerate(self._rest):
            if received < len(piece):
                self._rest = [piece[received:], *self._rest[position + 1 :]]
                return 0
            received -= len(piece)
        self._rest = []
        return received

    # The end.

    def drop(self, reason: str) -> None:
        """End the connection as if the server had ended it."""
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if not self.ended:
            self._end_io()
            self._loop.call_soon(self.lost, reason)

    def close(self) -> None:
        """Send DISC and close the connection. `lost` is not called. Idempotent."""
        if self.ended:
            return
        if not self._out:
            with suppress(OSError):  # the server has gone already
                self._sock.send(REQUEST.pack(REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0))
        self._end_io()

    def _end_io(self) -> None:
        self.ended = True
        self._loop.remove_reader(self._sock.fileno())
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
            self._writing = False
        self._out.clear()
        self._rest = []
        self._sock.close()


def write_message(offset: int, data: Sequence[memoryview]) -> bytearray:
    """Make a WRITE with a private copy of its data: if it is sent again later, it must be the same."""
    head = REQUEST.pack(REQUEST_MAGIC, 0, CMD_WRITE, 0, offset, sum(map(len, data)))
    return bytearray().join((head, *data))

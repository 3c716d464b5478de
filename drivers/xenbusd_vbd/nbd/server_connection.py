"""One NBD client's connection: handshake, then requests to the disk and replies back, all in plain callbacks.

Nothing here waits. Requests are taken as far as the buffer holds them, replies are collected and written once for
each turn of the event loop, and reading stops while the client does not take its replies or has enough in flight.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from xenbusd_vbd.nbd.disk import Disk
from xenbusd_vbd.nbd.server_handshake import Handshake, Stage
from xenbusd_vbd.nbd.wire import (
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    FLAG_FUA,
    REQUEST,
    REQUEST_MAGIC,
    Offer,
    Rules,
    WireError,
    data_chunk_head,
    error_chunk,
    none_chunk,
    simple_reply,
    wire_error,
)

REQUESTS_MAX = 128
"""Requests in flight on one connection; the next one stays in the socket."""
BYTES_MAX = 64 * 1024 * 1024
"""Bytes that the requests in flight on one connection read or write together."""
BUFFER_SIZE = 128 * 1024
"""Bytes taken from the socket at once."""
BATCH_MAX = 1024 * 1024
"""Bytes of replies that are written without waiting for the end of the turn."""
LARGE = 32 * 1024
"""Bytes from which on a reply is written by itself: joining it to others would copy it once more."""


@dataclass(slots=True)
class Counters:
    """What an export has done since it began, over all its connections."""

    connections: int = 0
    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    """Requests answered with an error, by the disk or before they reached it."""


class NbdConnection(asyncio.BufferedProtocol):
    """One client of an export.

    Args:
        disk: what is served.
        offer: how it is announced.
        counters: shared by all connections of the export.
        opened: called with the connection once it stands; returns whether it may stay.
        lost: called with the connection and the reason, once, when it has ended: None, or a sentence about the
            client's breach of the protocol.
        handshake: False for the kernel's client, which begins with its first request and knows simple replies only.
    """

    def __init__(
        self,
        disk: Disk,
        offer: Offer,
        counters: Counters,
        opened: Callable[[NbdConnection], bool],
        lost: Callable[[NbdConnection, str | None], None],
        *,
        handshake: bool,
    ) -> None:
        self._disk = disk
        self._counters = counters
        self._opened = opened
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._breach: str | None = None
        self._offer = offer
        self._handshake = Handshake(offer) if handshake else None
        self._structured = False
        self._rules = Rules.of(offer, offer.flags)

        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._begin = 0
        self._end = 0
        self._payload: memoryview | None = None
        """Data of a WRITE that has come in part; the rest is received straight into it."""
        self._payload_end = 0
        self._write: tuple[int, int, bool] = (0, 0, False)
        """Handle, offset and FUA of that WRITE."""
        self._skip = 0
        """Bytes still to be thrown away: the data of a WRITE that was refused."""
        self._skip_reply = b""

        self._requests = 0
        self._bytes = 0
        self._reading = True
        self._stalled = False
        """The next request waits in the buffer: the client has enough in flight, or does not take its replies."""
        self._writable = True
        self._finishing = False
        """No more requests; the connection closes once those in flight are answered."""
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._in_turn = False
        self._turn_due = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        # uvloop's transports are asyncio.Transports in all but name.
        self._transport = cast(asyncio.Transport, transport)
        if not self._opened(self):
            self._transport.abort()
        elif self._handshake is not None:
            self._transport.write(self._handshake.greeting)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Say where the next bytes go: a WRITE's own memory if the rest of one is awaited."""
        if self._payload is not None:
            return self._payload[self._payload_end :]
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        if self._payload is None:
            self._end += nbytes
        else:
            self._payload_end += nbytes
        self._turn()

    def eof_received(self) -> bool:
        """Close: a client that is done says DISC first, so this one has gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget the client. Requests in flight come home to nobody."""
        self._transport = None
        self._out.clear()
        self._payload = None
        self._lost(self, self._breach)

    def pause_writing(self) -> None:
        """The client does not take its replies: keep them, and take no more requests."""
        self._writable = False

    def resume_writing(self) -> None:
        """Write what was kept, and take requests again."""
        self._writable = True
        self._turn_soon()

    # What the export calls.

    def grow(self, size_bytes: int) -> None:
        """Let requests reach as far as the disk does now, if it is larger than it was."""
        if size_bytes > self._rules.size_bytes:
            self._rules = self._rules._replace(size_bytes=size_bytes)

    def finish(self) -> None:
        """Take no more requests, answer those in flight, then close. A handshake is broken off."""
        self._finishing = True
        self._payload = None
        if self._handshake is not None:
            self.abort()
        else:
            self._turn()

    def abort(self) -> None:
        """Close at once; what is not yet sent is dropped."""
        if self._transport is not None:
            self._transport.abort()

    # One turn: requests in, replies out.

    def _turn_soon(self) -> None:
        if not self._turn_due and not self._in_turn:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Write the replies that are in, take the requests that there is room for, settle whether to read on."""
        self._turn_due = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._in_turn = True
        try:
            self._write_out(transport)
            self._take(transport)
            self._write_out(transport)
        except WireError as error:
            self._breach = str(error)
            transport.abort()
            return
        except BaseException:
            # A bug of ours or of the disk: this client would wait for ever, so it goes; the loop tells of the rest.
            transport.abort()
            raise
        finally:
            self._in_turn = False
        if self._finishing and not self._requests and not self._out:
            transport.close()
        else:
            self._settle(transport)

    def _settle(self, transport: asyncio.Transport) -> None:
        if self._finishing:
            # Reading goes on, so that the client's death is seen; what it sends is thrown away.
            self._begin = self._end
            self._stalled = False
        if self._stalled == self._reading:
            self._reading = not self._stalled
            if self._stalled:
                transport.pause_reading()
            else:
                transport.resume_reading()
        if self._reading and self._begin:
            held = self._end - self._begin
            self._view[:held] = self._view[self._begin : self._end]
            self._begin, self._end = 0, held

    def _write_out(self, transport: asyncio.Transport) -> None:
        out = self._out
        while out and self._writable:
            reply = out.popleft()
            if out and len(reply) < LARGE:
                batch = [reply]
                while out and len(out[0]) < LARGE:
                    batch.append(out.popleft())
                reply = b"".join(batch)
            self._out_bytes -= len(reply)
            transport.write(reply)

    # Requests.

    def _take(self, transport: asyncio.Transport) -> None:
        """Take the messages that the buffer holds, until it ends or there is no room for the next one's answer."""
        self._stalled = False
        if self._handshake is not None and not self._negotiate(self._handshake, transport):
            return
        if self._payload is not None:
            if self._payload_end < len(self._payload):
                return
            payload, self._payload = self._payload, None
            self._submit_write(*self._write, payload)
        while not self._finishing:
            if self._skip:
                step = min(self._skip, self._end - self._begin)
                self._skip -= step
                self._begin += step
                if self._skip:
                    return
                self._queue(self._skip_reply)
            if self._end - self._begin < REQUEST.size:
                return
            if self._out_bytes >= BATCH_MAX:
                self._write_out(transport)
            magic, flags, command, handle, offset, length = REQUEST.unpack_from(self._buffer, self._begin)
            if magic != REQUEST_MAGIC:
                raise WireError(f"a request begins with {magic:#x}, not with {REQUEST_MAGIC:#x}")
            if command == CMD_DISC:
                self._finishing = True
                return
            refusal = self._rules.refusal(command, flags, offset, length)
            carried = length if refusal is None and command in (CMD_READ, CMD_WRITE) else 0
            if not self._writable or self._requests == REQUESTS_MAX or self._bytes + carried > BYTES_MAX:
                self._stalled = True
                return
            self._begin += REQUEST.size
            self._counters.requests += 1
            if refusal is not None:
                self._refuse(command, handle, length, *refusal)
            elif command == CMD_WRITE:
                self._take_payload(handle, offset, bool(flags & FLAG_FUA), length)
            else:
                self._submit(command, handle, offset, length, bool(flags & FLAG_FUA))

    def _negotiate(self, handshake: Handshake, transport: asyncio.Transport) -> bool:
        """Go on with the handshake; return whether requests may follow."""
        used, reply = handshake.feed(self._view[self._begin : self._end])
        self._begin += used
        if reply:
            transport.write(reply)
        if handshake.stage is Stage.NEGOTIATING:
            return False
        self._handshake = None
        self._structured = handshake.structured
        self._rules = Rules.of(self._offer, handshake.flags)
        self._finishing = handshake.stage is Stage.OVER
        return True

    def _refuse(self, command: int, handle: int, length: int, code: int, why: str) -> None:
        reply = self._failure(handle, code, why)
        if command != CMD_WRITE or not length:
            self._queue(reply)
        elif length > self._rules.maximum:
            raise WireError(f"a write of {length} bytes; at most {self._rules.maximum} go into one request")
        else:
            self._skip, self._skip_reply = length, reply

    def _take_payload(self, handle: int, offset: int, fua: bool, length: int) -> None:
        payload = memoryview(bytearray(length))
        here = min(length, self._end - self._begin)
        payload[:here] = self._view[self._begin : self._begin + here]
        self._begin += here
        if here == length:
            self._submit_write(handle, offset, fua, payload)
        else:
            self._begin = self._end = 0
            self._payload, self._payload_end, self._write = payload, here, (handle, offset, fua)

    def _submit_write(self, handle: int, offset: int, fua: bool, payload: memoryview) -> None:
        length = len(payload)
        self._requests += 1
        self._bytes += length
        done = partial(self._written, handle, length)
        if length:
            self._disk.write(offset, payload, fua, done)
        else:
            done(0)

    def _submit(self, command: int, handle: int, offset: int, length: int, fua: bool) -> None:
        self._requests += 1
        if command == CMD_READ:
            self._bytes += length
            read = partial(self._read, handle, offset, length)
            if length:
                self._disk.read(offset, length, read)
            else:
                read(0, ())
            return
        done = partial(self._done, handle)
        if command == CMD_FLUSH:
            self._disk.flush(done)
        elif command == CMD_TRIM and length:
            self._disk.trim(offset, length, partial(self._trimmed, done) if fua else done)
        else:
            done(0)

    # Answers, from the disk.

    def _read(self, handle: int, offset: int, length: int, code: int, pieces: Sequence[memoryview]) -> None:
        self._bytes -= length
        if code:
            self._done(handle, code)
            return
        self._requests -= 1
        if not self._structured:
            head = simple_reply(handle)
        elif length:
            head = data_chunk_head(handle, offset, length)
        else:
            head = none_chunk(handle)
        # The one copy: the pieces are the disk's again when this returns.
        reply = b"".join((head, *pieces))
        if len(reply) != len(head) + length:
            self.abort()
            raise ValueError(f"the disk answered a read of {length} bytes with {len(reply) - len(head)}")
        self._counters.bytes_read += length
        self._queue(reply)

    def _written(self, handle: int, length: int, code: int) -> None:
        self._bytes -= length
        if not code:
            self._counters.bytes_written += length
        self._done(handle, code)

    def _trimmed(self, done: Callable[[int], None], code: int) -> None:
        # FUA on a trim: `trim` has no such flag, so a flush follows.
        if code:
            done(code)
        else:
            self._disk.flush(done)

    def _done(self, handle: int, code: int) -> None:
        self._requests -= 1
        self._queue(self._failure(handle, code, os.strerror(code)) if code else simple_reply(handle))

    def _failure(self, handle: int, code: int, why: str) -> bytes:
        self._counters.errors += 1
        error = wire_error(code)
        return error_chunk(handle, error, why) if self._structured else simple_reply(handle, error)

    def _queue(self, reply: bytes) -> None:
        if self._transport is None:
            return
        self._out.append(reply)
        self._out_bytes += len(reply)
        self._turn_soon()

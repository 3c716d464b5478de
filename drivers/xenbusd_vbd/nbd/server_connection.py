"""One NBD client's connection to an export: handshake, then requests to the disk and replies back, by plain callbacks.

Nothing here waits. All is done in turns: requests are taken as far as the buffer holds them, replies are collected and
written once for each turn of the event loop, and reading stops while the client does not take its replies or has enough
requests under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from xenbusd_vbd.nbd.disk import Disk
from xenbusd_vbd.nbd.server_handshake import Handshake, Stage
from xenbusd_vbd.nbd.server_input import ClientInput
from xenbusd_vbd.nbd.server_replies import Replies
from xenbusd_vbd.nbd.server_requests import Counters, RequestsUnderWay
from xenbusd_vbd.nbd.wire import CMD_DISC, CMD_READ, CMD_WRITE, FLAG_FUA, REQUEST, Offer, Rules, WireError

BATCH_MAX = 1024 * 1024
"""Bytes of replies that are written without waiting for the end of the turn."""


class NbdConnection(asyncio.BufferedProtocol):
    """One client of an export.

    Args:
        disk: is served.
        offer: how it is announced.
        counters: shared by all connections of the export.
        opened: called with the connection once it is established; returns whether it may stay.
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
        self._counters = counters
        self._opened = opened
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._breach: str | None = None
        self._offer = offer
        self._handshake = Handshake(offer) if handshake else None
        self._rules = Rules.of(offer, offer.flags)
        self._input = ClientInput()
        self._replies = Replies(self._turn_soon)
        self._under_way = RequestsUnderWay(disk, self._replies, counters, self.abort)
        self._write: tuple[int, int, bool, bytes | None] | None = None
        """A WRITE whose data is awaited: handle, offset, FUA, and its reply if it was refused."""
        self._reading = True
        self._stalled = False
        """The next request waits in the buffer: the client has enough under way, or does not take its replies."""
        self._finishing = False
        """No more requests; the connection closes once those under way are answered."""
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
        """Say where the next bytes go."""
        return self._input.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that were received."""
        self._input.received(nbytes)
        self._turn()

    def eof_received(self) -> bool:
        """Close: a client that is done says DISC first, so this one has gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget the client. Answers to requests under way are dropped."""
        self._transport = None
        self._replies.close()
        self._input.discard()
        self._lost(self, self._breach)

    def pause_writing(self) -> None:
        """The client does not take its replies: keep them, and take no more requests."""
        self._replies.writable = False

    def resume_writing(self) -> None:
        """Write the replies that were kept, and take requests again."""
        self._replies.writable = True
        self._turn_soon()

    # What the export calls.

    def grow(self, size_bytes: int) -> None:
        """Let requests reach as far as the disk does now, if it is larger than it was."""
        if size_bytes > self._rules.size_bytes:
            self._rules = self._rules._replace(size_bytes=size_bytes)

    def finish(self) -> None:
        """Take no more requests, answer those under way, then close. A handshake is broken off."""
        self._finishing = True
        self._input.discard()
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
        """Write the replies that are in, take the requests that there is room for, decide whether to read on."""
        self._turn_due = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._in_turn = True
        try:
            self._replies.write(transport)
            self._take(transport)
            self._replies.write(transport)
        except WireError as error:
            self._breach = str(error)
            transport.abort()
            return
        except BaseException:
            # A bug of ours or of the disk: the client would wait for ever, so it is cut off. The loop logs it.
            transport.abort()
            raise
        finally:
            self._in_turn = False
        if self._finishing and not self._under_way.count and self._replies.is_empty():
            transport.close()
        else:
            self._read_or_pause(transport)

    def _read_or_pause(self, transport: asyncio.Transport) -> None:
        if self._finishing:
            # Keep reading, so that the end of the client is seen, and throw away what it sends.
            self._input.discard()
            self._stalled = False
        if self._stalled == self._reading:
            self._reading = not self._stalled
            if self._stalled:
                transport.pause_reading()
            else:
                transport.resume_reading()
        if self._reading:
            self._input.compact()

    # Requests.

    def _take(self, transport: asyncio.Transport) -> None:
        """Take the messages that the buffer holds, until it ends or there is no room for the next one's answer."""
        self._stalled = False
        if self._handshake is not None and not self._negotiate(self._handshake, transport):
            return
        while not self._finishing:
            if self._write is not None and not self._take_data(*self._write):
                return
            request = self._input.request()
            if request is None:
                return
            if self._replies.bytes >= BATCH_MAX:
                self._replies.write(transport)
            _, flags, command, handle, offset, length = request
            if command == CMD_DISC:
                self._finishing = True
                return
            refusal = self._rules.refusal(command, flags, offset, length)
            carried = length if refusal is None and command in (CMD_READ, CMD_WRITE) else 0
            if not self._replies.writable or not self._under_way.has_room(carried):
                self._stalled = True
                return
            self._input.use(REQUEST.size)
            self._counters["nbd_requests"] += 1
            if refusal is not None:
                self._refuse(command, handle, length, *refusal)
            elif command == CMD_READ:
                self._under_way.read(handle, offset, length)
            elif command == CMD_WRITE:
                data = self._input.data(length)
                if data is not None:
                    self._under_way.write(handle, offset, data, bool(flags & FLAG_FUA))
                else:
                    self._write = (handle, offset, bool(flags & FLAG_FUA), None)
            else:
                self._under_way.begin(command, handle, offset, length, bool(flags & FLAG_FUA))

    def _take_data(self, handle: int, offset: int, fua: bool, refusal: bytes | None) -> bool:
        """Begin, or refuse, the WRITE whose data was awaited; return whether the data has come."""
        if not self._input.has_data():
            return False
        self._write = None
        if refusal is None:
            self._under_way.write(handle, offset, self._input.take_data(), fua)
        else:
            self._replies.add(refusal)
        return True

    def _refuse(self, command: int, handle: int, length: int, code: int, why: str) -> None:
        reply = self._under_way.refused(handle, code, why)
        if command != CMD_WRITE or not length:
            self._replies.add(reply)
        elif length > self._rules.maximum:
            raise WireError(f"a write of {length} bytes; at most {self._rules.maximum} go into one request")
        else:
            self._input.skip_data(length)
            self._write = (handle, 0, False, reply)

    def _negotiate(self, handshake: Handshake, transport: asyncio.Transport) -> bool:
        """Take messages of the handshake; return whether requests may follow."""
        used, reply = handshake.feed(self._input.held())
        self._input.use(used)
        if reply:
            transport.write(reply)
        if handshake.stage is Stage.NEGOTIATING:
            return False
        self._handshake = None
        self._replies.structured = handshake.structured
        self._rules = Rules.of(self._offer, handshake.flags)
        self._finishing = handshake.stage is Stage.ENDED
        return True

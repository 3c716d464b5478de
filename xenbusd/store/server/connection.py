"""One connection to the embedded store: packets in, packets out. The asyncio side of a `Caller`.

All complete packets of one read from the socket are handled in one loop, and their answers leave in one write,
followed by the watch events that they caused.
"""

from __future__ import annotations

import asyncio
import errno
from typing import cast

from xenbusd.store.server.caller import Caller
from xenbusd.store.server.domains import Domain
from xenbusd.store.server.operations import perform
from xenbusd.store.server.permissions import READ
from xenbusd.store.server.quotas import Refusal
from xenbusd.store.server.state import State
from xenbusd.store.wire import HEADER, PAYLOAD_MAX, Op, errno_name

_READ = int(Op.READ)
_ERRORS = {code: errno_name(code) + b"\0" for code in errno.errorcode}


class Connection(asyncio.Protocol):
    """Serves one stream socket as one domain.

    From a peer that does not read, nothing is read either: its requests wait in its own socket, after at most
    `Quotas.outstanding` answers (or those of one read, for domain 0) have been kept for it. A peer whose bytes make
    no packets loses its connection; no other peer is affected.
    """

    def __init__(self, state: State, domain: Domain) -> None:
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._caller = Caller(domain, self._wake, self._drop)
        self._nodes = state.tree.nodes
        self._unread = b""
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._busy = False
        self._batch = None if domain.privileged else domain.quotas.outstanding

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the store, unless it has been closed or the domain has gone meanwhile."""
        # uvloop's transports are no subclass of asyncio's.
        transport = cast(asyncio.Transport, transport)
        if self._state.closed or self._caller.domain.released:
            transport.abort()
            return
        self._transport = transport
        if not self._caller.domain.privileged:
            transport.set_write_buffer_limits(high=0)
        self._state.join(self._caller)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Leave the store: watches and transactions end with the connection."""
        self._transport = None
        self._unread = b""
        self._state.leave(self._caller)

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._paused = False
        self._flush()
        if self._unread and not self._paused:
            self._work()
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take bytes as they come."""
        self._unread = self._unread + data if self._unread else data
        if not self._paused:
            self._work()

    def _work(self) -> None:
        """Answer the complete packets in `_unread`, as long as the peer takes the answers."""
        self._busy = True
        try:
            while not self._paused:
                answers, more = self._answer()
                if self._transport is None:
                    return
                answers.append(self._caller.take_events())
                if outgoing := b"".join(answers):
                    self._transport.write(outgoing)
                if more is None:
                    self._hang_up()
                if not more:
                    return
        finally:
            self._busy = False

    def _answer(self) -> tuple[list[bytes], bool | None]:
        """Return the answers to the next batch of packets, and whether more follow; None: the bytes that follow are no
        packet."""
        data = self._unread
        end = len(data)
        header_size = HEADER.size
        unpack, pack = HEADER.unpack_from, HEADER.pack
        state, caller, nodes = self._state, self._caller, self._nodes
        domain = caller.domain
        privileged = domain.privileged
        answers: list[bytes] = []
        batch = self._batch
        at = 0
        more: bool | None = False
        while end - at >= header_size:
            op, req_id, tx_id, length = unpack(data, at)
            if length > PAYLOAD_MAX:
                more = None
                break
            start = at + header_size
            stop = start + length
            if stop > end:
                break
            if batch is not None and len(answers) >= 2 * batch:
                more = True
                break
            at = stop
            payload = data[start:stop]
            if op == _READ and tx_id == 0:
                # Most requests name an absolute path that exists. Every other request takes the slow path.
                node = nodes.get(payload[:-1])
                if (
                    node is not None
                    and payload[-1] == 0
                    and payload[0] == 0x2F
                    and (privileged or domain.allow(node.perms) & READ)
                ):
                    value = node.value
                    answers += (pack(op, req_id, 0, len(value)), value)
                    continue
            try:
                answer = perform(state, caller, op, tx_id, payload)
            except Refusal as refusal:
                op, answer = Op.ERROR, _ERRORS[refusal.code]
            answers += (pack(op, req_id, tx_id, len(answer)), answer)
            if self._transport is None:
                break
        self._unread = data[at:]
        return answers, more

    def _wake(self) -> None:
        """Send events soon; those that our own requests cause go with the answers."""
        if not self._busy and not self._paused:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._transport is not None and not self._paused:
            events = self._caller.take_events()
            if events:
                self._transport.write(events)

    def _hang_up(self) -> None:
        """End the connection after the answers so far, if the peer takes them."""
        transport = self._transport
        if self._paused or transport is None:
            self._drop()
        else:
            self._transport = None
            self._state.leave(self._caller)
            transport.close()

    def _drop(self) -> None:
        """End the connection now."""
        transport, self._transport = self._transport, None
        self._unread = b""
        self._state.leave(self._caller)
        if transport is not None:
            transport.abort()
